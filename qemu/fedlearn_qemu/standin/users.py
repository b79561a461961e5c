# SPDX-License-Identifier: Apache-2.0
"""Users and groups of the image: Debian's by sysusers.d(5), the layer's by its recipes.

The packages' scripts and BitBake's useradd class would make them; here nothing of either runs.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass, field
from pathlib import Path

# Where useradd --system begins, going down.
_FIRST_FREE = 999
_NOLOGIN = "/usr/sbin/nologin"


@dataclass
class Accounts:
    """The lines of /etc/passwd and /etc/group."""

    users: dict[str, tuple[int, int, str, str]] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    members: dict[str, set[str]] = field(default_factory=dict)

    def free_id(self) -> int:
        """An id that nobody has."""
        taken = {*self.groups.values(), *(uid for uid, _, _, _ in self.users.values())}
        return next(number for number in range(_FIRST_FREE, 0, -1) if number not in taken)

    def group(self, name: str, number: int | None = None) -> int:
        """Add a group unless it is there; return its id."""
        return self.groups.setdefault(name, self.free_id() if number is None else number)

    def user(
        self, name: str, ids: str = "-", home: str = "/", shell: str = _NOLOGIN, comment: str = ""
    ) -> None:
        """Add a user, and the group of the same name unless `ids` ("uid:gid") has another."""
        if name in self.users:
            return
        uid, _, gid = ids.partition(":")
        number = int(uid) if uid.isdigit() else self.groups.get(name) or self.free_id()
        own = int(gid) if gid.isdigit() else self.group(name, number)
        self.users[name] = (number, own, home, shell)

    def join(self, user: str, group: str) -> None:
        """Make a user a member of a group."""
        self.group(group)
        self.members.setdefault(group, set()).add(user)

    def write(self, root: Path) -> None:
        """Write both files."""
        passwd = [
            f"{name}:*:{uid}:{gid}::{home}:{shell}"
            for name, (uid, gid, home, shell) in self.users.items()
        ]
        group = [
            f"{name}:*:{number}:{','.join(sorted(self.members.get(name, ())))}"
            for name, number in self.groups.items()
        ]
        (root / "etc/passwd").write_text("\n".join(passwd) + "\n", "utf-8")
        (root / "etc/group").write_text("\n".join(group) + "\n", "utf-8")


def add_sysusers(accounts: Accounts, folder: Path) -> None:
    """Add what the files of a sysusers.d folder ask for, groups first."""
    lines = [
        shlex.split(line)
        for path in sorted(folder.glob("*.conf"))
        for line in path.read_text("utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    for words in lines:
        if words[0] == "g":
            number = words[2] if len(words) > 2 else "-"
            accounts.group(words[1], int(number) if number.isdigit() else None)
    for kind, name, *rest in lines:
        values = [*rest, "-", "-", "-", "-"]
        if kind.rstrip("!") == "u":
            home = values[2] if values[2] != "-" else "/"
            shell = values[3] if values[3] != "-" else _NOLOGIN
            accounts.user(name, values[0], home, shell)
        elif kind == "m":
            accounts.join(name, values[0])


def add_useradd(accounts: Accounts, parameters: str) -> None:
    """Add a user as USERADD_PARAM of a recipe asks for it."""
    parser = argparse.ArgumentParser(prog="useradd", exit_on_error=False)
    for flag in ("system", "user-group", "no-create-home"):
        parser.add_argument(f"--{flag}", action="store_true")
    for option in ("gid", "groups", "home-dir", "shell"):
        parser.add_argument(f"--{option}", default="")
    parser.add_argument("name")
    wanted = parser.parse_args(shlex.split(parameters))
    ids = f"-:{accounts.group(wanted.gid)}" if wanted.gid else "-"
    accounts.user(wanted.name, ids, wanted.home_dir or "/", wanted.shell or _NOLOGIN)
    for group in filter(None, wanted.groups.split(",")):
        accounts.join(wanted.name, group)
