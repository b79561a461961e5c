# SPDX-License-Identifier: MIT
SUMMARY = "fedlearn client for any image"
DESCRIPTION = "The client as a service, with its configuration. IMAGE_INSTALL:append = \
\" packagegroup-fedlearn\" is all that an image needs."

inherit packagegroup features_check

REQUIRED_DISTRO_FEATURES = "fedlearn seccomp systemd"

RDEPENDS:${PN} = "\
    fedlearn-conf \
    fedlearn-provision \
    fedlearn-service \
"

# The policy's window is local time, which without it is UTC.
RRECOMMENDS:${PN} = "tzdata-core"
