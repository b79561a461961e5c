# SPDX-License-Identifier: MIT
SUMMARY = "Configuration of the fedlearn client"
DESCRIPTION = "What differs from fleet to fleet: fedlearn.toml, the CA of the aggregator, the token for \
enrolment, and what training may take from the board. Append to this recipe; the client's own stays \
as it is. Without any file the client waits for a configuration on the boot partition."
SECTION = "base"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

inherit useradd features_check

REQUIRED_DISTRO_FEATURES = "fedlearn seccomp systemd"

# In fedlearn-conf.bbappend, for the files that there are:
#   FILESEXTRAPATHS:prepend := "${THISDIR}/files:"
#   SRC_URI += "file://fedlearn.toml file://ca.pem file://token"
SRC_URI = ""
S = "${UNPACKDIR}"

# Limits of fedlearn.slice, see systemd.resource-control(5). The weights let everything else go first
# (the default is 100); memory is a share of the board's. 100% of CPU is one core.
FEDLEARN_CPU_WEIGHT ?= "20"
FEDLEARN_CPU_QUOTA ?= "100%"
FEDLEARN_IO_WEIGHT ?= "20"
FEDLEARN_MEMORY_HIGH ?= "40%"
FEDLEARN_MEMORY_MAX ?= "50%"
FEDLEARN_TASKS_MAX ?= "64"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -d ${D}${sysconfdir}/fedlearn
    for file in fedlearn.toml ca.pem; do
        [ ! -e ${UNPACKDIR}/$file ] || install -m 0644 ${UNPACKDIR}/$file ${D}${sysconfdir}/fedlearn
    done
    [ ! -e ${UNPACKDIR}/token ] || \
        install -m 0640 -g fedlearn ${UNPACKDIR}/token ${D}${sysconfdir}/fedlearn

    install -d ${D}${systemd_system_unitdir}/fedlearn.slice.d
    cat > ${D}${systemd_system_unitdir}/fedlearn.slice.d/limits.conf << EOF
[Slice]
CPUWeight=${FEDLEARN_CPU_WEIGHT}
CPUQuota=${FEDLEARN_CPU_QUOTA}
IOWeight=${FEDLEARN_IO_WEIGHT}
MemoryHigh=${FEDLEARN_MEMORY_HIGH}
MemoryMax=${FEDLEARN_MEMORY_MAX}
TasksMax=${FEDLEARN_TASKS_MAX}
EOF
}

FILES:${PN} += "${systemd_system_unitdir}"
CONFFILES:${PN} = "${sysconfdir}/fedlearn"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system fedlearn"
