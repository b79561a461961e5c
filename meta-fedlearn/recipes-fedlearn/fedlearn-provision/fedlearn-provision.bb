# SPDX-License-Identifier: MIT
SUMMARY = "Takes the fedlearn configuration over from the boot partition"
DESCRIPTION = "One image serves a fleet: fedlearn.toml, the CA and the token of a device are put into \
fedlearn/ on its boot partition, which every computer can write, and are taken over at boot."
SECTION = "base"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

SRC_URI = "\
    file://fedlearn-provision \
    file://fedlearn-provision.service \
"
S = "${UNPACKDIR}"

inherit allarch systemd features_check

REQUIRED_DISTRO_FEATURES = "fedlearn seccomp systemd"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -d ${D}${libexecdir} ${D}${systemd_system_unitdir}
    install -m 0755 ${UNPACKDIR}/fedlearn-provision ${D}${libexecdir}
    install -m 0644 ${UNPACKDIR}/fedlearn-provision.service ${D}${systemd_system_unitdir}
}

SYSTEMD_SERVICE:${PN} = "fedlearn-provision.service"

# The group of the token.
RDEPENDS:${PN} = "fedlearn-conf"
