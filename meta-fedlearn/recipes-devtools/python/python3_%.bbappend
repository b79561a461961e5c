# SPDX-License-Identifier: MIT
require ${@bb.utils.contains('DISTRO_FEATURES', 'fedlearn', 'python3-slim.inc', '', d)}
