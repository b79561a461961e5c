# SPDX-License-Identifier: Apache-2.0
"""`python -m fedlearn_aggregator` is `fedlearn-aggregator`."""

import sys

from fedlearn_aggregator.cli import main

if __name__ == "__main__":
    sys.exit(main())
