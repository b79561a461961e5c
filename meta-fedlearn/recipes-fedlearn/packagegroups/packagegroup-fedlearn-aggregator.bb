# SPDX-License-Identifier: MIT
SUMMARY = "fedlearn aggregator for any image"
DESCRIPTION = "The aggregator of a LAN as a service, with its configuration."

inherit packagegroup features_check

REQUIRED_DISTRO_FEATURES = "fedlearn seccomp systemd"

RDEPENDS:${PN} = "\
    fedlearn-aggregator-conf \
    fedlearn-aggregator-service \
"
