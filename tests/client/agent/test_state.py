# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedlearn.agent.allowance import Allowance
from fedlearn.agent.state import Memory, StateDirectory
from fedlearn.durable import storage_errors, write_durably
from fedlearn.errors import StorageError
from fedlearn.wire import codec
from fedlearn.wire.messages import Update

from .samples import UPDATE


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "state")


def put_model(state: StateDirectory, data: bytes, age_s: int) -> bytes:
    digest = hashlib.sha256(data).digest()
    path = state.models.file(digest)
    path.write_bytes(data)
    os.utime(path, (1000 - age_s, 1000 - age_s))
    return digest


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_syncs_the_data_before_the_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    steps = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        kind = "directory" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "data"
        steps.append((kind, path.read_bytes()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_durably(path, b"new")
    assert steps == [("data", b"old"), ("directory", b"new")]


def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path: Path) -> None:
    """A limit on the file size stands for the disk: the kernel refuses the bytes in mid-file."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = (
        "import sys, resource, signal\n"
        "from pathlib import Path\n"
        "from fedlearn.durable import write_durably\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "size = int(sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    write_durably(Path(sys.argv[1]), bytes(size))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )

    def run(size: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, str(path), str(size)],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert "StorageError cannot write" in run(100_000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert run(500) == ""  # the control: what fits is written
    assert path.read_bytes() == bytes(500)


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.ENOSPC, "make room"), (errno.EACCES, "may write there"), (errno.EROFS, "read-only")],
)
def test_hints(number: int, hint: str) -> None:
    with pytest.raises(StorageError) as caught, storage_errors("write", Path("/x")):
        raise OSError(number, os.strerror(number))
    assert hint in caught.value.hint


def test_two_agents_do_not_share_a_directory(tmp_path: Path) -> None:
    first = StateDirectory(tmp_path)
    with pytest.raises(StorageError, match="another agent uses"):
        StateDirectory(tmp_path)
    first.close()
    StateDirectory(tmp_path).close()


def test_a_directory_that_cannot_be_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot create .*/file/models"):
        StateDirectory(tmp_path / "file")


def test_only_the_owner_can_look_into_the_directory(tmp_path: Path) -> None:
    StateDirectory(tmp_path / "a" / "b").close()
    assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0


def test_memory(state: StateDirectory) -> None:
    assert state.memory() == Memory()
    state.remember(Memory("http://127.0.0.1:1"))
    assert state.memory() == Memory("http://127.0.0.1:1")
    whole = Memory("http://127.0.0.1:1", Allowance(500, "kind"))
    state.remember(whole)
    assert state.memory() == whole


def test_what_an_older_agent_remembered_is_read(state: StateDirectory) -> None:
    (state.models.path.parent / "agent.json").write_text('{"aggregator": "http://127.0.0.1:1"}')
    assert state.memory() == Memory("http://127.0.0.1:1")


def test_pending(state: StateDirectory, tmp_path: Path) -> None:
    assert state.pending() is None
    body = codec.encode(UPDATE)
    state.save_pending(body)
    assert state.pending() == (UPDATE, body)
    state.drop_pending()
    assert state.pending() is None
    state.drop_pending()  # nothing to drop is no error


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(cut=st.integers(0, 400), noise=st.binary(max_size=8))
def test_torn_files_are_put_aside(state: StateDirectory, cut: int, noise: bytes) -> None:
    whole = codec.encode(UPDATE)
    torn = whole[: cut % len(whole)] + noise
    if torn == whole:
        return
    for name in ("pending.cbor", "agent.json"):
        path = state.models.path.parent / name
        path.write_bytes(torn)
    assert state.memory() == Memory()
    found = state.pending()
    assert found is None or isinstance(found[0], Update)  # noise may happen to complete it
    assert state.memory() == Memory()


def test_what_cannot_be_used_is_kept_for_a_person(state: StateDirectory) -> None:
    path = state.models.path.parent / "pending.cbor"
    path.write_bytes(b"torn")
    assert state.pending() is None
    assert not path.exists()
    assert path.with_name("pending.cbor.corrupt").read_bytes() == b"torn"


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "{}", "5", '{"aggregator": {}}', "{", "\x00"),
        '{"aggregator": "", "allowance": 5}',
        '{"aggregator": "", "allowance": {"kib": -5}}',
        '{"aggregator": "", "allowance": {"kib": 1e300}}',
        '{"aggregator": "", "allowance": {"kib": NaN}}',
        '{"aggregator": "", "allowance": {"kib": Infinity}}',
    ],
)
def test_any_agent_json_is_survived(state: StateDirectory, content: str) -> None:
    (state.models.path.parent / "agent.json").write_text(content)
    memory = state.memory()
    assert isinstance(memory.aggregator, str)
    assert 0 <= memory.allowance.kib <= 2**31


def test_a_model_is_there_only_to_the_last_bit(state: StateDirectory) -> None:
    digest = put_model(state, b"model", 0)
    assert state.models.has(digest)
    state.models.file(digest).write_bytes(b"mode1")
    assert not state.models.has(digest)
    assert [path.name for path in state.models.path.iterdir()] == ["model.corrupt"]


def test_current_and_previous_models_stay(state: StateDirectory) -> None:
    oldest, previous, current = (put_model(state, bytes([n]), 10 - n) for n in range(3))
    state.models.partial(oldest).touch()
    state.models.partial(current).touch()
    (state.models.path / ".half.tflite.tmp").touch()
    state.models.prune(current)
    assert not state.models.file(oldest).exists()
    assert state.models.has(previous)
    assert state.models.has(current)
    names = {path.name for path in state.models.path.iterdir()}
    assert names == {f"{previous.hex()}.tflite", f"{current.hex()}.tflite", f"{current.hex()}.part"}


def test_the_newest_intact_model_is_the_base(state: StateDirectory) -> None:
    assert state.models.newest() is None
    older = put_model(state, b"older", 10)
    newer = put_model(state, b"newer", 5)
    (state.models.path / "notes.tflite").write_bytes(b"a person's file")
    assert state.models.newest() == newer
    state.models.file(newer).write_bytes(b"torn")
    assert state.models.newest() == older
