# SPDX-License-Identifier: MIT
SUMMARY = "What a device with a read-only root needs besides fedlearn"
DESCRIPTION = "For images whose disk has a data partition that is mounted at /data: the partition grows \
at first boot, the state of fedlearn and of systemd (clock, random seed) is kept there, the journal \
stays small, each device gets a host name of its own, and the hardware watchdog runs."
SECTION = "base"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

SRC_URI = "\
    file://fedlearn-grow-data \
    file://fedlearn-grow-data.service \
    file://fedlearn-hostname \
    file://fedlearn-hostname.service \
    file://journald.conf \
    file://persistent.mount.in \
    file://watchdog.conf \
"
S = "${UNPACKDIR}"

inherit allarch systemd features_check

REQUIRED_DISTRO_FEATURES = "fedlearn seccomp systemd"

# Directories of /var/lib that live on the data partition.
PERSISTENT = "fedlearn fedlearn-aggregator systemd"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -d ${D}/data ${D}${libexecdir} ${D}${systemd_system_unitdir}
    for name in fedlearn-grow-data fedlearn-hostname; do
        install -m 0755 ${UNPACKDIR}/$name ${D}${libexecdir}
        install -m 0644 ${UNPACKDIR}/$name.service ${D}${systemd_system_unitdir}
    done

    for name in ${PERSISTENT}; do
        # Wanted, not required: without its data partition a device still boots.
        # A mount unit is named by its path, with - as \x2d.
        unit=$(echo "var-lib-$(echo $name | sed 's/-/\\x2d/g').mount")
        sed "s/@NAME@/$name/g" ${UNPACKDIR}/persistent.mount.in > "${D}${systemd_system_unitdir}/$unit"
        install -d ${D}${systemd_system_unitdir}/local-fs.target.wants
        ln -s "../$unit" "${D}${systemd_system_unitdir}/local-fs.target.wants/$unit"
    done

    install -D -m 0644 ${UNPACKDIR}/journald.conf ${D}${nonarch_libdir}/systemd/journald.conf.d/50-fedlearn.conf
    install -D -m 0644 ${UNPACKDIR}/watchdog.conf ${D}${nonarch_libdir}/systemd/system.conf.d/50-fedlearn.conf
}

FILES:${PN} += "/data ${nonarch_libdir}/systemd"

SYSTEMD_SERVICE:${PN} = "fedlearn-grow-data.service fedlearn-hostname.service"

RDEPENDS:${PN} = "\
    util-linux-findmnt \
    util-linux-mount \
    util-linux-partx \
    util-linux-sfdisk \
"
