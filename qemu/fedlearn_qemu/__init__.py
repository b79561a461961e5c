# SPDX-License-Identifier: Apache-2.0
"""fedlearn_qemu: emulated ARM64 devices that boot an image of the layer and join a LAN."""
