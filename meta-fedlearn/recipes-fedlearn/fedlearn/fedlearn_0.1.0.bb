# SPDX-License-Identifier: MIT
SUMMARY = "Federated learning of int8 .tflite models"
DESCRIPTION = "The client trains a fully-int8 .tflite model on data that stays on the device and sends \
integer deltas to the aggregator of its LAN, which sums them into the next model."

require fedlearn.inc

SRC_URI += "\
    file://fedlearn.service \
    file://fedlearn-collect.service \
    file://fedlearn.slice \
"

# The package of the TFLite runtime. python3-ai-edge-litert is Google's own build, for aarch64 and
# x86-64; meta-tensorflow-lite builds python3-tensorflow-lite from source for everything else.
FEDLEARN_TFLITE_RUNTIME ?= "python3-ai-edge-litert"
FEDLEARN_TFLITE_RUNTIME:arm ?= "python3-tensorflow-lite"

do_install:append() {
    # The demonstration and the emulated devices are no part of a device.
    rm ${D}${bindir}/fedlearn-aggregator ${D}${bindir}/fedlearn-demo ${D}${bindir}/fedlearn-qemu
    rm -r ${D}${PYTHON_SITEPACKAGES_DIR}/fedlearn_aggregator

    install -d ${D}${systemd_system_unitdir}
    for unit in fedlearn.service fedlearn-collect.service fedlearn.slice; do
        install -m 0644 ${UNPACKDIR}/$unit ${D}${systemd_system_unitdir}
    done
}

# fedlearn          the library and the `fedlearn` command
# fedlearn-service  the agent, and what reads its sensor, as services
PACKAGE_BEFORE_PN = "${PN}-service"

SUMMARY:${PN}-service = "${SUMMARY}: the client as a service"

FILES:${PN}-service = "${systemd_system_unitdir}"

SYSTEMD_PACKAGES = "${PN}-service"
SYSTEMD_SERVICE:${PN}-service = "fedlearn.service fedlearn-collect.service"

# The group is also that of fedlearn-conf, which is installed first: useradd --user-group would fail.
# Serial ports are open to fedlearn-collect alone, by its unit.
USERADD_PACKAGES = "${PN}-service"
GROUPADD_PARAM:${PN}-service = "--system fedlearn"
USERADD_PARAM:${PN}-service = "\
    --system --gid fedlearn --no-create-home --home-dir ${localstatedir}/lib/fedlearn \
    --shell /sbin/nologin fedlearn \
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
# USB adapters of sensors, where the kernel has them as modules.
RRECOMMENDS:${PN}-service = "\
    kernel-module-cdc-acm \
    kernel-module-ch341 \
    kernel-module-cp210x \
    kernel-module-ftdi-sio \
    kernel-module-pl2303 \
"
