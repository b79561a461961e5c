# SPDX-License-Identifier: MIT
SUMMARY = "Image of the aggregator of a LAN"
DESCRIPTION = "Turns a board into the aggregator: the same read-only root and data partition as \
fedlearn-image, with the aggregator instead of the client."

require fedlearn-image.inc

IMAGE_INSTALL += "packagegroup-fedlearn-aggregator"
