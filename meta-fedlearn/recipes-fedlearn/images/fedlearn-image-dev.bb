# SPDX-License-Identifier: MIT
SUMMARY = "fedlearn-image for its developers"
DESCRIPTION = "fedlearn-image with ssh, a root login without a password, tools and ptest. It must not \
leave the desk."

require fedlearn-image.bb

IMAGE_FEATURES += "\
    allow-empty-password \
    allow-root-login \
    empty-root-password \
    ssh-server-openssh \
"
IMAGE_INSTALL += "\
    packagegroup-fedlearn-aggregator \
    procps \
    strace \
    systemd-analyze \
    ${@bb.utils.contains('DISTRO_FEATURES', 'ptest', 'ptest-runner python3-cbor2-ptest', '', d)} \
"

# Whoever looks for a fault here wants to read the source.
ROOTFS_POSTPROCESS_COMMAND:remove = "fedlearn_sourceless_python"
