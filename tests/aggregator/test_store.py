# SPDX-License-Identifier: Apache-2.0
"""What is on disk: group commit, a full disk, damage, retention."""

import asyncio
import sqlite3
from collections.abc import Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.errors import ConfigError, StorageError
from fedlearn_aggregator import report, schema, store
from fedlearn_aggregator.begin import begin
from fedlearn_aggregator.lock import exclusive
from fedlearn_aggregator.optimizers import ServerState
from fedlearn_aggregator.report import RoundReport
from fedlearn_aggregator.rounds import Policy, State
from fedlearn_aggregator.store import UpdateRow
from fedlearn_aggregator.tally import LISTED, Tally
from fedlearn_aggregator.task import Task
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
            downloads=Tally.of([7]),
            next_opens=9.0,
            model=start_model().data,
            state=state,
        )
        again = store.load_state(db, task)
        for slot in ("master", "first", "second"):
            for index, values in getattr(state, slot).items():
                assert getattr(again, slot)[index].tobytes() == values.tobytes()
        first, second = store.load_rounds(db)
        assert first.summary is not None
        assert (first.state, first.summary.bytes_down, first.started) == (
            State.CLOSED,
            Tally(1, 7, (7,)),
            6.0,
        )
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


class Failing:
    """A connection to a disk that dies: COMMIT fails, and ROLLBACK if that is asked for."""

    def __init__(self, db: sqlite3.Connection, *statements: str) -> None:
        self._db = db
        self._statements = statements

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        if statement in self._statements:
            raise sqlite3.OperationalError("disk I/O error")
        return self._db.execute(statement, *arguments)


@pytest.mark.parametrize("dead", [False, True])
def test_nobody_waits_for_a_writer_that_died(path: Path, dead: bool) -> None:
    async def scenario() -> None:
        writer = Writer(path)
        try:
            sound = writer._db
            statements = ("COMMIT", "ROLLBACK") if dead else ("COMMIT",)
            writer._db = Failing(sound, *statements)  # type: ignore[assignment]
            both = [asyncio.create_task(writer.do(store.load_updates, 1)) for _ in range(2)]
            for each in both:
                with pytest.raises(StorageError, match="I/O error"):
                    await each
            assert (writer.failure is not None) == writer.broken.done() == dead
            if dead:
                with pytest.raises(StorageError, match="restart"):
                    await writer.do(store.load_updates, 1)
            else:  # the control: a failed transaction is no failed writer
                writer._db = sound
                assert await writer.do(store.load_updates, 1) == []
        finally:
            writer.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))


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


def play(
    db: sqlite3.Connection, task: Task, numbers: Iterable[int], *, closed: bool = True
) -> None:
    """Rounds of one update each that all end the same way."""
    for number in numbers:
        data = bytearray(start_model().data)
        data[-1] = (data[-1] + number) % 256
        store.add_seat(db, number, "a", 8.0)
        store.add_update(db, number, row(), b"body")
        store.finish_round(
            db,
            task,
            number,
            State.CLOSED if closed else State.ABANDONED,
            closed=9.0,
            downloads=Tally.of([7]),
            next_opens=9.0,
            model=bytes(data) if closed else None,
        )


def test_old_models_and_updates_go_but_the_starting_model_and_the_numbers_stay(path: Path) -> None:
    task = make_task(Policy(2, 1), keep_models=2, keep_updates=1)
    with closing(schema.open_writer(path)) as db:
        play(db, task, range(1, 7))
        rows = store.load_rounds(db)
        there = [store.load_model(db, each.base) is not None for each in rows]
        assert there == [True, False, False, False, True, True, True]
        for table in ("updates", "seats"):
            kept = db.execute(f"SELECT round FROM {table} ORDER BY round").fetchall()
            assert kept == [(6,)]
        for each in rows[:-1]:
            assert each.summary is not None
            assert (each.summary.updates, each.summary.samples) == (1, 3)
            assert (each.summary.bytes_up, each.summary.bytes_down) == (
                Tally(1, 4, (4,)),
                Tally(1, 7, (7,)),
            )
            assert each.summary.slowest_train_s == METRICS.train_s
            assert each.summary.metrics is not None
            assert each.summary.metrics.accuracy_after == METRICS.accuracy_after
        assert rows[-1].summary is None  # it has not ended


def test_abandoned_rounds_cost_no_models(path: Path) -> None:
    task = make_task(Policy(2, 1), keep_models=2, keep_updates=2)
    with closing(schema.open_writer(path)) as db:
        play(db, task, range(1, 6))
        before = db.execute("SELECT digest FROM models ORDER BY digest").fetchall()
        assert len(before) == 1 + 3  # the first, and those that two rounds began and ended with
        play(db, task, range(6, 20), closed=False)
        assert db.execute("SELECT digest FROM models ORDER BY digest").fetchall() == before
        assert db.execute("SELECT round FROM updates ORDER BY round").fetchall() == [(18,), (19,)]
        play(db, task, range(20, 22))  # the control: closed rounds do
        after = db.execute("SELECT digest FROM models ORDER BY digest").fetchall()
        assert len(after) == len(before)
        assert after != before


def test_a_report_of_large_rounds_is_short(path: Path) -> None:
    names = [f"d{i:04}" for i in range(LISTED + 50)]
    with closing(schema.open_writer(path)) as db:
        for name in names:
            store.add_update(db, 1, row(name), b"body")

        def check(first: RoundReport) -> None:
            assert first.devices == tuple(names[:LISTED])
            assert first.bytes_up == (4,) * LISTED
            assert (first.updates, first.samples) == (len(names), 3 * len(names))
            assert first.bytes_up_total == 4 * len(names)

        (first,) = report.read(path).rounds  # while it runs
        check(first)
        task = make_task(Policy(2, 1))
        tally = Tally.of([9] * 1000)
        store.finish_round(db, task, 1, State.CLOSED, closed=9.0, downloads=tally, next_opens=9.0)
        first, second = report.read(path).rounds
        check(first)
        assert (first.downloads, first.bytes_down_total) == (1000, 9000)
        assert len(first.bytes_down) == LISTED
        assert (second.updates, second.devices, second.bytes_down) == (0, (), ())


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


@pytest.mark.parametrize("watched", [False, True])
def test_a_task_is_moved_aside_with_its_last_commits(path: Path, watched: bool) -> None:
    old = left_log(path)
    path.with_name(path.name + "-wal").write_bytes(old)
    with ExitStack() as stack:
        if watched:  # by `status`, so that SQLite cannot remove the log
            watcher = stack.enter_context(closing(schema.open_reader(path)))
            assert store.load_seats(watcher, 1) == {"a": False}
        task = make_task(Policy(1, 1), name="new")
        moved = begin(path.parent, task, start_model(), 9.0, force=True)
    assert moved is not None
    log = moved.with_name(moved.name + "-wal")
    assert not log.exists() or log.stat().st_size == 0
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


def test_a_file_of_the_first_version_is_taken_along(path: Path) -> None:
    with closing(schema.open_writer(path)) as db:
        db.executescript(
            """DROP TABLE evaluations;
            CREATE TABLE evaluations (model BLOB PRIMARY KEY, accuracy REAL NOT NULL,
                                      loss REAL NOT NULL, samples INTEGER NOT NULL);
            INSERT INTO evaluations VALUES (x'01', 0.5, 1.5, 10);
            PRAGMA user_version=1;"""
        )
    unknown = store.EvaluationRow(None, 0.25, 10)
    with closing(schema.open_reader(path)) as db:  # a reader takes it as it is
        assert store.load_evaluations(db) == {b"\1": store.EvaluationRow(0.5, 1.5, 10)}
    with closing(schema.open_writer(path)) as db:
        store.add_evaluation(db, b"\2", unknown)
        assert store.load_evaluations(db)[b"\1"].accuracy == 0.5
        assert store.load_evaluations(db)[b"\2"] == unknown
        assert db.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
