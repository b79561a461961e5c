# SPDX-License-Identifier: Apache-2.0
"""`python -m fedlearn` is the `fedlearn` command."""

import sys

from fedlearn.cli import main

sys.exit(main())
