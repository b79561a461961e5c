# SPDX-License-Identifier: MIT
SUMMARY = "Configuration of the fedlearn aggregator"
DESCRIPTION = "The task (its options and its first model) and the certificate of the LAN's aggregator. \
Append to this recipe; the aggregator's own stays as it is."
SECTION = "base"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

inherit useradd features_check

REQUIRED_DISTRO_FEATURES = "fedlearn systemd"

# In fedlearn-aggregator-conf.bbappend, for the files that there are:
#   FILESEXTRAPATHS:prepend := "${THISDIR}/files:"
#   SRC_URI += "file://model.tflite file://server.pem file://server.key"
#   FEDLEARN_AGGREGATOR_INIT = "--task pumps --tail dense --cohort 20"
SRC_URI = ""
S = "${UNPACKDIR}"

# Options of `fedlearn-aggregator init` and `serve`.
FEDLEARN_AGGREGATOR_INIT ?= "--task default"
FEDLEARN_AGGREGATOR_SERVE ?= ""

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -d ${D}${sysconfdir}/fedlearn-aggregator
    cat > ${D}${sysconfdir}/fedlearn-aggregator/aggregator.conf << EOF
INIT_OPTIONS="${FEDLEARN_AGGREGATOR_INIT}"
SERVE_OPTIONS="${FEDLEARN_AGGREGATOR_SERVE}"
EOF
    for file in model.tflite server.pem; do
        [ ! -e ${UNPACKDIR}/$file ] || \
            install -m 0644 ${UNPACKDIR}/$file ${D}${sysconfdir}/fedlearn-aggregator
    done
    [ ! -e ${UNPACKDIR}/server.key ] || \
        install -m 0640 -g fedlearn-aggregator ${UNPACKDIR}/server.key ${D}${sysconfdir}/fedlearn-aggregator
}

CONFFILES:${PN} = "${sysconfdir}/fedlearn-aggregator"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system fedlearn-aggregator"
