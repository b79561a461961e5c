# SPDX-License-Identifier: Apache-2.0
"""`python -m fedlearn_qemu` is `fedlearn-qemu`."""

import sys

from fedlearn_qemu.cli import main

if __name__ == "__main__":
    sys.exit(main())
