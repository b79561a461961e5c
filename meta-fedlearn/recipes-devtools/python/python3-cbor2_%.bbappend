# SPDX-License-Identifier: MIT
# What cbor2 imports and its recipe does not name.
RDEPENDS:${PN}:append:class-target = "${@bb.utils.contains('DISTRO_FEATURES', 'fedlearn', ' python3-email python3-netclient python3-numbers', '', d)}"
