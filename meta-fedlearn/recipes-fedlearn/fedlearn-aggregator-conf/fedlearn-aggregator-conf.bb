# SPDX-License-Identifier: MIT
SUMMARY = "Configuration of the fedlearn aggregator"
DESCRIPTION = "The task (its options and its first model) and the identity of the LAN's aggregator. \
Append to this recipe; the aggregator's own stays as it is."
SECTION = "base"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

inherit useradd features_check

REQUIRED_DISTRO_FEATURES = "fedlearn seccomp systemd"

# In fedlearn-aggregator-conf.bbappend, for the files that there are:
#   FILESEXTRAPATHS:prepend := "${THISDIR}/files:"
#   SRC_URI += "file://model.tflite file://identity"
#   FEDLEARN_AGGREGATOR_INIT = "--task pumps --tail dense --cohort 20"
SRC_URI = ""
S = "${UNPACKDIR}"

# Options of `fedlearn-aggregator init` and `serve`.
FEDLEARN_AGGREGATOR_INIT ?= "--task default"
FEDLEARN_AGGREGATOR_SERVE ?= ""

do_configure[noexec] = "1"
do_compile[noexec] = "1"

# The folder `identity` that `fedlearn-aggregator init` made elsewhere, with the CA whose certificate the
# devices have. Without it the aggregator makes a CA of its own at its first start.
do_install() {
    install -d ${D}${sysconfdir}/fedlearn-aggregator
    identity=
    if [ -d ${UNPACKDIR}/identity ]; then
        identity=" --identity ${sysconfdir}/fedlearn-aggregator/identity"
        install -d -m 0750 -g fedlearn-aggregator ${D}${sysconfdir}/fedlearn-aggregator/identity
        install -m 0640 -g fedlearn-aggregator ${UNPACKDIR}/identity/* \
            ${D}${sysconfdir}/fedlearn-aggregator/identity
    fi
    cat > ${D}${sysconfdir}/fedlearn-aggregator/aggregator.conf << EOF
INIT_OPTIONS="${FEDLEARN_AGGREGATOR_INIT}$identity"
SERVE_OPTIONS="${FEDLEARN_AGGREGATOR_SERVE}"
EOF
    [ ! -e ${UNPACKDIR}/model.tflite ] || \
        install -m 0644 ${UNPACKDIR}/model.tflite ${D}${sysconfdir}/fedlearn-aggregator
}

CONFFILES:${PN} = "${sysconfdir}/fedlearn-aggregator"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system fedlearn-aggregator"
