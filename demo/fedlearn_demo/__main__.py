# SPDX-License-Identifier: Apache-2.0
"""`python -m fedlearn_demo` is `fedlearn-demo`."""

import sys

from fedlearn_demo.cli import main

if __name__ == "__main__":
    sys.exit(main())
