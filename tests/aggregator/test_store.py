# SPDX-License-Identifier: Apache-2.0
"""What is on disk: group commit, a full disk, damage, retention."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fedlearn.errors import ConfigError, StorageError
from fedlearn_aggregator import schema, store
from fedlearn_aggregator.begin import begin
from fedlearn_aggregator.lock import exclusive
from fedlearn_aggregator.optimizers import ServerState
from fedlearn_aggregator.rounds import Policy, State
from fedlearn_aggregator.store import UpdateRow
from fedlearn_aggregator.writer import Writer
from tests.aggregator.devices import METRICS, start_model
from tests.aggregator.service import make_task


@pytest.fixture
def path(tmp_path: Path) -> Path:
    begin(tmp_path, make_task(Policy(2, 1)), start_model(), 5.0, force=False)
    return tmp_path / schema.FILE_NAME


def row(device: str = "a", digest: bytes = b"d" * 32) -> UpdateRow:
    return UpdateRow(device, digest, 3, METRICS, 6.0, 4)


def test_a_new_task_is_complete_and_reads_back(path: Path) -> None:
    with closing(schema.open_reader(path)) as db:
        task = store.load_task(db)
        (first,) = store.load_rounds(db)
        assert task == make_task(Policy(2, 1))
        assert (first.number, first.state, first.opens) == (1, State.OPEN, 5.0)
        assert store.load_model(db, first.base) == start_model().data
        master = store.load_state(db, task).master
        for index, values in master.items():
            np.testing.assert_array_equal(values, start_model().array(index))
    assert sorted(each.name for each in path.parent.iterdir())[0] == schema.FILE_NAME


def test_the_file_is_opened_for_durability(path: Path) -> None:
    with closing(schema.open_writer(path)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_the_optimisers_state_reads_back_to_the_bit(path: Path) -> None:
    task = make_task(Policy(2, 1))
    rng = np.random.default_rng(0)
    state = ServerState(
        *({t.index: rng.normal(size=t.shape) for t in task.tensors} for _ in range(3))
    )
    with closing(schema.open_writer(path)) as db:
        store.add_seat(db, 1, "a", 6.0)
        store.finish_round(
            db,
            task,
            1,
            State.CLOSED,
            closed=9.0,
            downloads=[7],
            next_opens=9.0,
            model=start_model().data,
            state=state,
        )
        again = store.load_state(db, task)
        for slot in ("master", "first", "second"):
            for index, values in getattr(state, slot).items():
                assert getattr(again, slot)[index].tobytes() == values.tobytes()
        first, second = store.load_rounds(db)
        assert (first.state, first.downloads, first.started) == (State.CLOSED, (7,), 6.0)
        assert (second.number, second.state, second.closed_before) == (2, State.OPEN, 1)


def test_waiting_writes_share_a_commit_and_each_gets_its_own_answer(path: Path) -> None:
    async def scenario() -> None:
        writer = Writer(path)
        try:
            commits = 0

            def trace(statement: str) -> None:
                nonlocal commits
                commits += statement == "COMMIT"

            # The first job holds the thread back until all others wait.
            loop = asyncio.get_running_loop()
            gate = asyncio.run_coroutine_threadsafe
            release = asyncio.Event()

            def block(db: sqlite3.Connection) -> None:
                db.set_trace_callback(trace)
                gate(release.wait(), loop).result()

            blocked = asyncio.create_task(writer.do(block))
            writes = [
                asyncio.create_task(writer.do(store.add_update, 1, row(f"d{i}"), b"body"))
                for i in range(10)
            ]
            broken = asyncio.create_task(writer.do(store.add_update, 99, row(), b"no such round"))
            again = asyncio.create_task(writer.do(store.add_update, 1, row("d0"), b"body"))
            await asyncio.sleep(0)
            release.set()
            await blocked
            await asyncio.gather(*writes)
            with pytest.raises(sqlite3.IntegrityError):
                await again
            with pytest.raises(sqlite3.IntegrityError):
                await broken
            assert commits <= 2  # the gate's, and one for all the others
        finally:
            writer.close()
        with closing(schema.open_reader(path)) as db:
            assert len(store.load_updates(db, 1)) == 10

    asyncio.run(scenario())


def test_a_full_disk_is_an_error_for_the_caller_and_no_more(path: Path) -> None:
    async def scenario() -> None:
        writer = Writer(path)
        try:

            def limit(db: sqlite3.Connection, pages: int) -> None:
                used = db.execute("PRAGMA page_count").fetchone()[0]
                db.execute(f"PRAGMA max_page_count={used + pages}")

            await writer.do(limit, 2)
            with pytest.raises(StorageError, match="full"):
                await writer.do(store.add_update, 1, row(), bytes(1_000_000))
            assert await writer.do(store.load_updates, 1) == []
            await writer.do(limit, 10_000)
            await writer.do(store.add_update, 1, row(), bytes(1_000_000))
            assert len(await writer.do(store.load_updates, 1)) == 1
        finally:
            writer.close()

    asyncio.run(scenario())


def test_what_was_answered_is_seen_by_others_at_once(path: Path) -> None:
    async def scenario() -> None:
        writer = Writer(path)
        try:
            await writer.do(store.add_seat, 1, "a", 6.0)
            with closing(schema.open_reader(path)) as db:
                assert store.load_seats(db, 1) == {"a": False}
        finally:
            writer.close()

    asyncio.run(scenario())


def test_old_models_and_bodies_go_but_the_starting_model_stays(path: Path) -> None:
    task = make_task(Policy(2, 1), keep_models=2, keep_updates=1)
    data = bytearray(start_model().data)
    with closing(schema.open_writer(path)) as db:
        for number in range(1, 7):
            store.add_update(db, number, row(), b"body")
            data[-1] = (start_model().data[-1] + number) % 256
            store.finish_round(
                db,
                task,
                number,
                State.CLOSED,
                closed=9.0,
                downloads=[],
                next_opens=9.0,
                model=bytes(data),
            )
        rows = store.load_rounds(db)
        there = [store.load_model(db, each.base) is not None for each in rows]
        assert there == [True, False, False, False, True, True, True]
        bodies = db.execute("SELECT body FROM updates ORDER BY round").fetchall()
        assert [body for (body,) in bodies] == [None] * 5 + [b"body"]


def test_damage_is_noticed(path: Path) -> None:
    with closing(schema.open_writer(path)) as db:
        (first,) = store.load_rounds(db)
        db.execute("UPDATE models SET data = zeroblob(8)")
        with pytest.raises(StorageError, match="damaged"):
            store.load_model(db, first.base)
        store.add_update(db, 1, row(digest=b"?" * 32), b"body")
        with pytest.raises(StorageError, match="damaged"):
            store.load_bodies(db, 1)


def test_files_that_are_not_ours_are_refused(tmp_path: Path, path: Path) -> None:
    with pytest.raises(ConfigError, match="no task"):
        schema.open_reader(tmp_path / "elsewhere" / schema.FILE_NAME)
    other = tmp_path / "text"
    other.write_text("not a database, only some text that is long enough" * 50)
    with pytest.raises(StorageError, match="not a database"):
        schema.open_writer(other)
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(StorageError, match="no complete task"):
        schema.open_writer(empty)
    with closing(schema.open_writer(path)) as db:
        db.execute(f"PRAGMA user_version={schema.VERSION + 1}")
    with pytest.raises(StorageError, match="newer"):
        schema.open_writer(path)


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(StorageError, match="in use"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


def test_force_moves_the_old_task_aside(path: Path) -> None:
    before = path.read_bytes()
    task = make_task(Policy(1, 1), name="other")
    with pytest.raises(ConfigError, match="holds a task"):
        begin(path.parent, task, start_model(), 9.0, force=False)
    assert path.read_bytes() == before
    moved = begin(path.parent, task, start_model(), 9.0, force=True)
    assert moved is not None
    assert moved.read_bytes() == before
    with closing(schema.open_reader(path)) as db:
        assert store.load_task(db).name == "other"


def left_log(path: Path) -> bytes:
    """The log of a process that was killed after its last commit."""
    with closing(schema.open_writer(path)) as db:
        store.add_seat(db, 1, "a", 6.0)
        return path.with_name(path.name + "-wal").read_bytes()


def test_the_log_of_a_lost_file_gets_into_no_new_task(path: Path) -> None:
    log = path.with_name(path.name + "-wal")
    old = left_log(path)
    path.unlink()
    log.write_bytes(old)
    moved = begin(path.parent, make_task(Policy(1, 1), name="new"), start_model(), 9.0, force=False)
    assert moved is None
    with closing(schema.open_reader(path)) as db:
        assert store.load_task(db).name == "new"
        assert store.load_seats(db, 1) == {}
    assert path.with_name(path.name + ".1.old-wal").read_bytes() == old  # nothing is deleted
    # The control: without `begin` SQLite takes the log for that of the new file.
    log.write_bytes(old)
    with closing(schema.open_writer(path)) as db:
        assert store.load_seats(db, 1) == {"a": False}


def test_a_task_is_moved_aside_with_its_last_commits(path: Path) -> None:
    old = left_log(path)
    path.with_name(path.name + "-wal").write_bytes(old)
    moved = begin(path.parent, make_task(Policy(1, 1), name="new"), start_model(), 9.0, force=True)
    assert moved is not None
    assert not moved.with_name(moved.name + "-wal").exists()
    for file, seats in ((moved, {"a": False}), (path, {})):
        with closing(schema.open_writer(file)) as db:
            assert store.load_seats(db, 1) == seats


def test_a_damaged_task_is_moved_aside_as_it_is(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)
    path.with_name(path.name + "-wal").write_bytes(b"its log")
    moved = begin(path.parent, make_task(Policy(1, 1)), start_model(), 9.0, force=True)
    assert moved is not None
    assert moved.read_bytes() == b"no database" * 1000
    assert moved.with_name(moved.name + "-wal").read_bytes() == b"its log"
    with closing(schema.open_reader(path)) as db:
        assert store.load_task(db) == make_task(Policy(1, 1))
