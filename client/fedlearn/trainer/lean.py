# SPDX-License-Identifier: Apache-2.0
"""Keeps what the trainer never uses out of its memory: 10 MB of the 34 it has with NumPy 1.26.

NumPy 2 imports its sub-packages when they are first used; 1.26, which Yocto scarthgap has, imports
all of them at once, and numpy.random brings OpenSSL's libcrypto with it. Here they find an empty
module in their place. `hashlib` falls back to CPython's own SHA-256 when OpenSSL's is not there,
which for a model's digest is as good.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

# The last two hold nothing but doc strings, under the names of 1.26 and of 2.
_UNUSED = (
    "numpy.random",
    "numpy.fft",
    "numpy.polynomial",
    "numpy.ma",
    "numpy.core._add_newdocs",
    "numpy._core._add_newdocs",
)
# CPython's own SHA-256: the first is 3.11's name for it, the second that of 3.12 and newer.
_OWN_SHA256 = ("_sha256", "_sha2")


def import_lean() -> None:
    """Import hashlib, zipfile and NumPy without what is not used.

    For the trainer process alone, before anything else imports them: on NumPy 1.26 the sub-packages
    stay empty afterwards.
    """
    if any(importlib.util.find_spec(name) for name in _OWN_SHA256):
        _import_without("hashlib", absent={"_hashlib": None})
    # NumPy's .npz archives are stored or deflated.
    _import_without("zipfile", absent={"bz2": None, "lzma": None})
    _import_without("numpy", absent={name: ModuleType(name) for name in _UNUSED})


def _import_without(name: str, *, absent: dict[str, ModuleType | None]) -> None:
    stand_ins = {key: value for key, value in absent.items() if key not in sys.modules}
    # None in sys.modules makes an import fail, as the documentation of `import` says.
    sys.modules.update(stand_ins)  # type: ignore[arg-type]
    try:
        importlib.import_module(name)
    finally:
        for key in stand_ins:
            del sys.modules[key]
