# SPDX-License-Identifier: MIT
SUMMARY = "Image of a device that learns"
DESCRIPTION = "The fedlearn client on a read-only root: no ssh, no password, nothing else to log into."

require fedlearn-image.inc

IMAGE_INSTALL += "packagegroup-fedlearn"

# Python loads module.pyc where it finds no module.py. Tracebacks still name files and lines; their text
# is 13 MB that a device reads for nothing.
fedlearn_sourceless_python[doc] = "Replaces Python's sources by their bytecode"
fedlearn_sourceless_python() {
    find ${IMAGE_ROOTFS}${libdir}/python3.* -path '*/__pycache__/*.pyc' | while read -r compiled; do
        module=$(basename "$compiled")
        source=$(dirname "$(dirname "$compiled")")/${module%%.cpython-*}.py
        # Bytecode of another level of optimization (opt-1) has two dots more, and goes.
        case ${module#*.cpython-} in
        *.*.pyc) rm "$compiled" ;;
        *) [ ! -e "$source" ] || { mv "$compiled" "${source}c" && rm "$source"; } ;;
        esac
    done
    find ${IMAGE_ROOTFS}${libdir}/python3.* -type d -name __pycache__ -empty -delete
}
ROOTFS_POSTPROCESS_COMMAND += "fedlearn_sourceless_python"
