# SPDX-License-Identifier: MIT
SUMMARY = "Federated learning of int8 .tflite models"
DESCRIPTION = "The client trains a fully-int8 .tflite model on data that stays on the device and sends \
integer deltas to the aggregator of its LAN, which sums them into the next model."
SECTION = "devel/python"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

# The layer lives in the repository of what it builds: the sources are those of the same commit, and
# their checksums make the tasks run again when they change.
FILESEXTRAPATHS:prepend := "${THISDIR}/../../..:"
SRC_URI = "\
    file://LICENSE;subdir=${BP} \
    file://README.md;subdir=${BP} \
    file://pyproject.toml;subdir=${BP} \
    file://client;subdir=${BP} \
    file://aggregator;subdir=${BP} \
    file://fedlearn.service \
    file://fedlearn-collect.service \
    file://fedlearn.slice \
    file://fedlearn-aggregator.service \
    file://fedlearn-aggregator-init.service \
"

inherit python_setuptools_build_meta systemd useradd features_check

REQUIRED_DISTRO_FEATURES = "fedlearn systemd"

# The package of the TFLite runtime. python3-ai-edge-litert is Google's own build, for aarch64 and
# x86-64; meta-tensorflow-lite builds python3-tensorflow-lite from source for everything else.
FEDLEARN_TFLITE_RUNTIME ?= "python3-ai-edge-litert"
FEDLEARN_TFLITE_RUNTIME:arm ?= "python3-tensorflow-lite"

do_install:append() {
    # The demonstration and the emulated devices are no part of a device.
    rm ${D}${bindir}/fedlearn-demo ${D}${bindir}/fedlearn-qemu

    install -d ${D}${systemd_system_unitdir}
    for unit in fedlearn.service fedlearn-collect.service fedlearn.slice fedlearn-aggregator.service fedlearn-aggregator-init.service; do
        install -m 0644 ${UNPACKDIR}/$unit ${D}${systemd_system_unitdir}
    done
}

# fedlearn             the library and the `fedlearn` command
# fedlearn-service     the agent, and what reads its sensor, as services
# fedlearn-aggregator  the `fedlearn-aggregator` command
# fedlearn-aggregator-service
PACKAGE_BEFORE_PN = "${PN}-service ${PN}-aggregator-service ${PN}-aggregator"

SUMMARY:${PN}-service = "${SUMMARY}: the client as a service"
SUMMARY:${PN}-aggregator = "${SUMMARY}: the aggregator"
SUMMARY:${PN}-aggregator-service = "${SUMMARY}: the aggregator as a service"

FILES:${PN}-service = "\
    ${systemd_system_unitdir}/fedlearn.* \
    ${systemd_system_unitdir}/fedlearn-collect.service \
"
FILES:${PN}-aggregator-service = "${systemd_system_unitdir}/fedlearn-aggregator*"
FILES:${PN}-aggregator = "\
    ${bindir}/fedlearn-aggregator \
    ${PYTHON_SITEPACKAGES_DIR}/fedlearn_aggregator \
"

SYSTEMD_PACKAGES = "${PN}-service ${PN}-aggregator-service"
SYSTEMD_SERVICE:${PN}-service = "fedlearn.service fedlearn-collect.service"
SYSTEMD_SERVICE:${PN}-aggregator-service = "fedlearn-aggregator.service"

# The groups are also those of -conf, which is installed first: useradd --user-group would fail.
# Serial ports are open to fedlearn-collect alone, by its unit.
USERADD_PACKAGES = "${PN}-service ${PN}-aggregator-service"
GROUPADD_PARAM:${PN}-service = "--system fedlearn"
USERADD_PARAM:${PN}-service = "\
    --system --gid fedlearn --no-create-home --home-dir ${localstatedir}/lib/fedlearn \
    --shell /sbin/nologin fedlearn \
"
GROUPADD_PARAM:${PN}-aggregator-service = "--system fedlearn-aggregator"
USERADD_PARAM:${PN}-aggregator-service = "\
    --system --gid fedlearn-aggregator --no-create-home \
    --home-dir ${localstatedir}/lib/fedlearn-aggregator --shell /sbin/nologin fedlearn-aggregator \
"

RDEPENDS:${PN} += "\
    ${FEDLEARN_TFLITE_RUNTIME} \
    python3-asyncio \
    python3-cbor2 \
    python3-compression \
    python3-crypt \
    python3-ctypes \
    python3-datetime \
    python3-difflib \
    python3-email \
    python3-fcntl \
    python3-io \
    python3-json \
    python3-logging \
    python3-math \
    python3-misc \
    python3-mmap \
    python3-netclient \
    python3-numbers \
    python3-numpy \
    python3-pickle \
    python3-pyserial \
    python3-resource \
    python3-threading \
    python3-tomllib \
    python3-zeroconf \
"
# The device makes its key and its requests for certificates with the openssl command.
RDEPENDS:${PN}-service = "${PN} fedlearn-conf openssl-bin"
RDEPENDS:${PN}-aggregator = "\
    ${PN} \
    python3-aiohttp \
    python3-cryptography \
    python3-ifaddr \
    python3-multiprocessing \
    python3-sqlite3 \
    python3-statistics \
"
RDEPENDS:${PN}-aggregator-service = "${PN}-aggregator fedlearn-aggregator-conf"
# USB adapters of sensors, where the kernel has them as modules.
RRECOMMENDS:${PN}-service = "\
    kernel-module-cdc-acm \
    kernel-module-ch341 \
    kernel-module-cp210x \
    kernel-module-ftdi-sio \
    kernel-module-pl2303 \
"
