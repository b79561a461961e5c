# SPDX-License-Identifier: MIT
# The Raspberry Pi's kernel has the memory controller switched off.
CMDLINE:append = "${@bb.utils.contains('DISTRO_FEATURES', 'fedlearn', ' cgroup_enable=memory', '', d)}"
