# SPDX-License-Identifier: MIT
FILESEXTRAPATHS:prepend := "${THISDIR}/../../../../recipes-kernel/linux/files:"
SRC_URI:append = "${@bb.utils.contains('DISTRO_FEATURES', 'fedlearn', ' file://fedlearn.cfg', '', d)}"
