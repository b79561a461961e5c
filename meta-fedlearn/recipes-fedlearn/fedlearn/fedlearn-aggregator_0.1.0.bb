# SPDX-License-Identifier: MIT
SUMMARY = "Aggregator of federated learning"
DESCRIPTION = "The server of a LAN: it gives devices the model of a round and sums their integer deltas \
into the next one."

require fedlearn.inc

SRC_URI += "\
    file://fedlearn-aggregator.service \
    file://fedlearn-aggregator-init.service \
"

do_install:append() {
    # The client is the package that this one needs, with the metadata of both.
    rm ${D}${bindir}/fedlearn ${D}${bindir}/fedlearn-demo ${D}${bindir}/fedlearn-qemu
    rm -r ${D}${PYTHON_SITEPACKAGES_DIR}/fedlearn ${D}${PYTHON_SITEPACKAGES_DIR}/*.dist-info

    install -d ${D}${systemd_system_unitdir}
    for unit in fedlearn-aggregator.service fedlearn-aggregator-init.service; do
        install -m 0644 ${UNPACKDIR}/$unit ${D}${systemd_system_unitdir}
    done
}

# fedlearn-aggregator          the `fedlearn-aggregator` command
# fedlearn-aggregator-service
PACKAGE_BEFORE_PN = "${PN}-service"

SUMMARY:${PN}-service = "${SUMMARY}: as a service"

FILES:${PN}-service = "${systemd_system_unitdir}"

SYSTEMD_PACKAGES = "${PN}-service"
SYSTEMD_SERVICE:${PN}-service = "fedlearn-aggregator.service"

# The group is also that of fedlearn-aggregator-conf, which is installed first.
USERADD_PACKAGES = "${PN}-service"
GROUPADD_PARAM:${PN}-service = "--system fedlearn-aggregator"
USERADD_PARAM:${PN}-service = "\
    --system --gid fedlearn-aggregator --no-create-home \
    --home-dir ${localstatedir}/lib/fedlearn-aggregator --shell /sbin/nologin fedlearn-aggregator \
"

RDEPENDS:${PN} += "\
    fedlearn \
    python3-aiohttp \
    python3-cryptography \
    python3-ifaddr \
    python3-multiprocessing \
    python3-sqlite3 \
    python3-statistics \
"
RDEPENDS:${PN}-service = "${PN} fedlearn-aggregator-conf"
