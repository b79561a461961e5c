# SPDX-License-Identifier: Apache-2.0
"""The stand-in image: Debian's packages under the layer's own units, configuration and partitions.

It is no product of BitBake's and proves nothing of it: another libc, kernel and Python.
"""
