# SPDX-License-Identifier: MIT
require ${@bb.utils.contains('DISTRO_FEATURES', 'fedlearn', 'systemd-slim.inc', '', d)}
