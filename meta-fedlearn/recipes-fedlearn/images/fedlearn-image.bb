# SPDX-License-Identifier: MIT
SUMMARY = "Image of a device that learns"
DESCRIPTION = "The fedlearn client on a read-only root: no ssh, no password, nothing else to log into."

require fedlearn-image.inc

IMAGE_INSTALL += "packagegroup-fedlearn"
