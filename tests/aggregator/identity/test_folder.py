# SPDX-License-Identifier: Apache-2.0
"""The identity folder: made once, kept, copied, and its server certificate renewed."""

from __future__ import annotations

import shutil
import time
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509

from fedlearn.errors import ConfigError, ExitCode
from fedlearn_aggregator.identity import folder as module
from fedlearn_aggregator.identity.authority import SERVER_DAYS
from fedlearn_aggregator.identity.folder import Folder, ensure
from tests.aggregator.devices import MODEL_PATH as MODEL
from tests.aggregator.process import init, run

DAY_S = 86400


def test_it_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    assert ensure(path, time.time())
    ca = (path / "ca.pem").read_bytes()
    assert not ensure(path, time.time())
    assert (path / "ca.pem").read_bytes() == ca
    assert path.stat().st_mode & 0o777 == 0o700
    for name in ("ca.key", "status.token"):
        assert (path / name).stat().st_mode & 0o777 == 0o600


def test_a_clock_that_is_plainly_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the clock is wrong"):
        ensure(tmp_path / "identity", 1000.0)
    assert not (tmp_path / "identity/ca.key").exists()


def test_the_server_is_certified_anew_when_it_is_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, now = tmp_path / "identity", time.time()
    ensure(path, now)
    with closing(Folder.open(path)) as folder:
        assert folder.renew_server(now)
        first = (path / "server.pem").read_bytes()
        assert not folder.renew_server(now)
        assert not folder.renew_server(now + 0.6 * SERVER_DAYS * DAY_S)
        assert folder.renew_server(now + 0.7 * SERVER_DAYS * DAY_S)
        second = (path / "server.pem").read_bytes()
        assert second != first
        folder.registry.add_server_names(["192.0.2.7", "hub.example"])
        assert folder.renew_server(now)
        names = alternatives(path)
        assert {"192.0.2.7", "hub.example", "localhost", "127.0.0.1"} <= names
        # A machine that moved to another address.
        monkeypatch.setattr(module, "_names_here", lambda: ["192.0.2.8"])
        assert folder.renew_server(now)
        assert alternatives(path) == {"192.0.2.8", "192.0.2.7", "hub.example"}
        # A power cut between the two files, or a damaged one.
        (path / "server.key").write_bytes(b"")
        assert folder.renew_server(now)
        assert folder.server_context()


def alternatives(path: Path) -> set[str]:
    certificate = x509.load_pem_x509_certificate((path / "server.pem").read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return {str(each.value) for each in found.value}


def test_another_task_begins_with_a_copy(tmp_path: Path) -> None:
    init(tmp_path / "one", "--tokens", "2")
    init(tmp_path / "two", "--identity", str(tmp_path / "one/identity"), "--tokens", "0")
    assert (tmp_path / "two/identity/ca.pem").read_bytes() == (
        tmp_path / "one/identity/ca.pem"
    ).read_bytes()
    with closing(Folder.open(tmp_path / "two/identity")) as folder:
        assert folder.registry.unused_tokens(time.time()) == 2
    task = ("--task", "t", "--model", str(MODEL))
    wrong = ("--identity", str(tmp_path))
    done = run("init", "--data-dir", str(tmp_path / "three"), *task, *wrong)
    assert done.returncode == ExitCode.CONFIG
    assert f"there is no identity in {tmp_path}" in done.stderr
    assert not (tmp_path / "three/identity").exists()
    # The data directory will do as well.
    init(tmp_path / "three", "--identity", str(tmp_path / "one"))


def test_a_damaged_one_is_said(tmp_path: Path) -> None:
    init(tmp_path)
    (tmp_path / "identity/ca.key").write_text("hello")
    done = run("serve", "--data-dir", str(tmp_path), "--port", "0", "--host", "127.0.0.1")
    assert done.returncode == ExitCode.CONFIG
    assert "restore ca.pem and ca.key" in done.stderr
    serving = ("serve", "--data-dir", str(tmp_path), "--port", "0", "--host", "127.0.0.1")
    for name in ("ca.key", "ca.pem", "registry.sqlite"):
        (tmp_path / "identity" / name).rename(tmp_path / "kept")
        done = run(*serving)
        assert done.returncode == ExitCode.CONFIG
        assert f"{name} is gone" in done.stderr
        (tmp_path / "kept").rename(tmp_path / "identity" / name)
    shutil.rmtree(tmp_path / "identity")
    done = run(*serving)
    assert done.returncode == ExitCode.CONFIG
    assert "holds no identity" in done.stderr


def test_a_lost_status_token_is_made_anew(tmp_path: Path) -> None:
    ensure(tmp_path / "identity", time.time())
    (tmp_path / "identity/status.token").unlink()
    with closing(Folder.open(tmp_path / "identity")) as folder:
        assert len(folder.status_token) > 20


def test_init_says_what_the_devices_get(tmp_path: Path) -> None:
    words = ["--task", "t", "--model", str(MODEL), "--cohort", "3"]
    done = run("init", "--data-dir", str(tmp_path), *words)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "identity/ca.pem") in done.stdout
    assert done.stdout.count("  token    ") == 3
    again = run("init", "--data-dir", str(tmp_path), *words, "--force", "--tokens", "1")
    assert again.returncode == 0, again.stderr
    with closing(Folder.open(tmp_path / "identity")) as folder:
        assert folder.registry.unused_tokens(time.time()) == 4  # a new task has the same fleet
