# SPDX-License-Identifier: MIT
require ${@bb.utils.contains('DISTRO_FEATURES', 'fedlearn', 'rpi-cmdline-fedlearn.inc', '', d)}
