# SPDX-License-Identifier: Apache-2.0
"""What needs root, without it: in a user namespace, where this user is root and nobody else.

There the image's files can belong to its users and a LAN can be made; on the host nothing belongs
to anybody but the user, user_namespaces(7). Some kernels and containers do not allow it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from fedlearn_qemu import tools

_UNSHARE = ("unshare", "--user", "--map-root-user", "--map-auto", "--mount")


def enter(arguments: Sequence[str]) -> None:
    """Start `fedlearn-qemu` over in a namespace; return where this is root, or cannot be."""
    if os.geteuid() == 0:
        return
    environment = {**os.environ, "PATH": tools.path()}
    try:
        done = subprocess.run(
            [*_UNSHARE, "true"], env=environment, capture_output=True, check=False
        )
    except FileNotFoundError:
        return
    if done.returncode == 0:
        program = [sys.executable, "-m", "fedlearn_qemu", *arguments]
        os.execvpe(_UNSHARE[0], [*_UNSHARE, *program], environment)  # noqa: S606 - no shell
