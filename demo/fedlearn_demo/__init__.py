# SPDX-License-Identifier: Apache-2.0
"""fedlearn_demo: a fleet of device processes on loopback that federates a real task."""

import os

# The fleet has the cores. Before NumPy is imported: a BLAS with a thread for each of them waits by
# spinning, on a busy machine for most of the time.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
