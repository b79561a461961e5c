# SPDX-License-Identifier: MIT
require ${@bb.utils.contains('DISTRO_FEATURES', 'fedlearn', 'recipes-kernel/linux/linux-fedlearn.inc', '', d)}
