# SPDX-License-Identifier: Apache-2.0
"""Findings of oelint-adv that stand, each with its reason."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiver:
    """A rule that does not count for files of this name."""

    rule: str
    files: str
    reason: str

    def covers(self, rule: str, file: str) -> bool:
        """Whether a finding is this one; a rule's variants (`rule.VARIABLE`) are the rule."""
        return (rule == self.rule or rule.startswith(self.rule + ".")) and fnmatch.fnmatchcase(
            file, self.files
        )


# Not run at all: whether a web page answers is no property of the layer.
NOT_RUN = ("oelint.vars.homepageping",)

WAIVERS = (
    Waiver("oelint.var.suggestedvar", "*", "suggestions; OE-core's own recipes have few of them"),
    Waiver("oelint.var.mandatoryvar.HOMEPAGE", "fedlearn*.bb", "it has a repository, no home page"),
    Waiver("oelint.var.bbclassextend", "*", "nothing of it is of use at build time"),
    Waiver("oelint.vars.multilineident", "*", "four spaces, as OE-core indents today"),
    Waiver(
        "oelint.file.underscores", "fedlearn-*.bb", "no upstream, hence no version of their own"
    ),
    Waiver("oelint.var.licenseremotefile", "fedlearn-*.bb", "as above: OE-core's copy is the text"),
    Waiver("oelint.var.filesoverride", "*", "packages of our own, which have no FILES yet"),
    Waiver("oelint.var.order.SUMMARY", "*", "the SUMMARY of a further package stands beside it"),
    Waiver("oelint.task.heredocs", "*-conf.bb", "made of the recipe's variables"),
    Waiver("oelint.task.heredocs", "python3-zeroconf_*.bb", "has the recipe's PV"),
    *(
        Waiver("oelint.vars.noncoreoverride", name, "required with the distro feature only")
        for name in (
            "linux-fedlearn.inc",
            "python3-cbor2-splits.inc",
            "python3-numpy-slim.inc",
            "python3-slim.inc",
            "systemd-slim.inc",
            "rpi-cmdline-fedlearn.inc",
        )
    ),
    Waiver("oelint.vars.listappend", "python3-numpy-slim.inc", "the list ends with a blank"),
    Waiver("oelint.vars.mispell", "rpi-cmdline-fedlearn.inc", "a variable of meta-raspberrypi"),
    Waiver("oelint.vars.mispell", "*litert_*.bb", "PRIVATE_LIBS is OE-core's, of package.bbclass"),
    Waiver("oelint.vars.mispell", "fedlearn-image.inc", "runqemu's variables"),
    Waiver("oelint.vars.specific", "fedlearn-image.inc", "rpi is an override of meta-raspberrypi"),
    Waiver("oelint.vars.specific", "fedlearn_*.bb", "arm is the override of an architecture"),
    Waiver("oelint.vars.fileextrapaths", "fedlearn.inc", "the sources are this repository"),
    Waiver("oelint.vars.outofcontext", "fedlearn.inc", "as above"),
    Waiver("oelint.var.override", "fedlearn-image-dev.bb", "an image on top of another image"),
    Waiver("oelint.var.badimagefeature", "fedlearn-image-dev.bb", "what the image is for"),
    Waiver("oelint.bbclass.underscores", "fedlearn-sanity.bbclass", "as OE-core names its own"),
    Waiver("oelint.task.docstrings", "fedlearn-sanity.bbclass", "an event handler, no task"),
    Waiver("oelint.vars.layerconf", "layer.conf", "scarthgap has no UNPACKDIR; says so there"),
)
