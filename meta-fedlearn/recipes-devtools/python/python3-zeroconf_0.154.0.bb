# SPDX-License-Identifier: MIT
SUMMARY = "Multicast DNS service discovery in Python"
DESCRIPTION = "The versions of both meta-python releases let any host of the LAN make them use ever more \
memory; that is mended since 0.149.13."
HOMEPAGE = "https://github.com/python-zeroconf/python-zeroconf"
LICENSE = "LGPL-2.1-or-later"
LIC_FILES_CHKSUM = "file://COPYING;md5=6ede793c8b5508eab1acfad7c0c4e335"

SRC_URI[sha256sum] = "830315497af9bbd75924c2218cd3b64f0bde0e808ee316aabb5d9288836c0c43"

inherit pypi python_setuptools_build_meta features_check

# Without it meta-python's recipe is the one to build.
REQUIRED_DISTRO_FEATURES = "fedlearn"

# Pure Python, by setuptools: the compiled one would save little of the moment that a search takes, for
# megabytes; and its own build wants a newer poetry-core than scarthgap has.
do_configure:append() {
    rm -f ${S}/setup.py
    cat > ${S}/pyproject.toml << EOF
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "zeroconf"
version = "${PV}"
dependencies = ["ifaddr>=0.1.7"]

[tool.setuptools.packages.find]
where = ["src"]

[tool.setuptools.package-data]
zeroconf = ["py.typed"]
EOF
}

RDEPENDS:${PN} += "\
    python3-asyncio \
    python3-ifaddr \
    python3-io \
    python3-logging \
    python3-math \
    python3-threading \
"
