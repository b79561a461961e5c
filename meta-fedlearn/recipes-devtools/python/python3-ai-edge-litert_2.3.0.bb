# SPDX-License-Identifier: MIT
SUMMARY = "Interpreter of LiteRT (TensorFlow Lite)"
DESCRIPTION = "The interpreter out of Google's own wheel. Only what ai_edge_litert.interpreter needs is \
installed: no GPU accelerator, no compiler, no converter."
HOMEPAGE = "https://ai.google.dev/edge/litert"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${DIST_INFO}/licenses/LICENSE;md5=86d3f3a95c324c9479bd8986968f4327"

inherit pypi python3-dir features_check

REQUIRED_DISTRO_FEATURES = "fedlearn"

# There are wheels for these two alone, and they need glibc.
COMPATIBLE_HOST = "(aarch64|x86_64).*-linux"
COMPATIBLE_HOST:libc-musl = "null"

PYPI_PACKAGE = "ai_edge_litert"
PYTHON_TAG = "cp${@d.getVar('PYTHON_BASEVERSION').replace('.', '')}"
WHEEL = "${PYPI_PACKAGE}-${PV}-${PYTHON_TAG}-${PYTHON_TAG}-manylinux_2_27_${TARGET_ARCH}.whl"
DIST_INFO = "${PYPI_PACKAGE}-${PV}.dist-info"

# Where the class looks for the source archive, wheels lie beside it under their tag. The name .zip
# makes bitbake unpack it.
def wheel_src_uri(d):
    archive = d.expand('${PYPI_PACKAGE}-${PV}.${PYPI_PACKAGE_EXT}')
    uri = pypi_src_uri(d).split(';')[0]
    uri = uri.replace('/source/', d.expand('/${PYTHON_TAG}/')).replace(archive, d.getVar('WHEEL'))
    return uri + d.expand(';downloadfilename=${WHEEL}.zip;name=${PYTHON_TAG}-${TARGET_ARCH}')

PYPI_SRC_URI = "${@wheel_src_uri(d)}"
SRC_URI[cp312-aarch64.sha256sum] = "9891611b23a87cc2ace60e4b5ee9a2ee6f0fb7f395f009470961ae6e6310e1b8"
SRC_URI[cp312-x86_64.sha256sum] = "dc9f56c23e0dcf182b6c35f23fbb102ed048296588882b806d5eff7654c04c88"
SRC_URI[cp313-aarch64.sha256sum] = "2ab71e4f5dfa65b3882634b42755f455f3e7415630d720200bd792733e15e257"
SRC_URI[cp313-x86_64.sha256sum] = "985ac3823fe1d5d6a04cf5f613cc2adf98a9c8a456af0b5efa8d9ac6b118ea14"
SRC_URI[cp314-aarch64.sha256sum] = "899b41423b30f3cef1ce8a361443092fdeefc4d536132511634fa21548347b0a"
SRC_URI[cp314-x86_64.sha256sum] = "695f5164b66ebdb0a3bbb4edc4d7024e87c65a0e417d48d0a2db2503bc01b78d"

S = "${UNPACKDIR}"
do_unpack[depends] += "unzip-native:do_populate_sysroot"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

LITERT_FILES = "\
    __init__.py \
    interpreter.py \
    metrics_interface.py \
    metrics_portable.py \
    _pywrap_litert_interpreter_wrapper.so \
    libpywrap_litert_common.so \
"

do_install() {
    install -d ${D}${PYTHON_SITEPACKAGES_DIR}/ai_edge_litert ${D}${PYTHON_SITEPACKAGES_DIR}/${DIST_INFO}
    for file in ${LITERT_FILES}; do
        install -m 0644 ${S}/ai_edge_litert/$file ${D}${PYTHON_SITEPACKAGES_DIR}/ai_edge_litert
    done
    # Its version is in there, for importlib.metadata.
    install -m 0644 ${S}/${DIST_INFO}/METADATA ${D}${PYTHON_SITEPACKAGES_DIR}/${DIST_INFO}
}

FILES:${PN} = "${PYTHON_SITEPACKAGES_DIR}"
# Nothing outside of the package links with it.
PRIVATE_LIBS = "libpywrap_litert_common.so"

RDEPENDS:${PN} = "\
    python3-core \
    python3-ctypes \
    python3-datetime \
    python3-numbers \
    python3-numpy \
    python3-pickle \
"
