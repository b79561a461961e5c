# SPDX-License-Identifier: Apache-2.0
"""fedlearn_demo: a fleet of device processes on loopback that federates a real task."""
