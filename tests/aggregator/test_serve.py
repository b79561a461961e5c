# SPDX-License-Identifier: Apache-2.0
"""The `serve` process ends when it can no longer do its work, so that a supervisor restarts it."""

import asyncio
import time
from contextlib import closing
from pathlib import Path

import pytest

from fedlearn.errors import ExitCode, StorageError
from fedlearn_aggregator import schema, store
from fedlearn_aggregator import serve as serving
from fedlearn_aggregator.begin import begin
from fedlearn_aggregator.rounds import Policy, State
from fedlearn_aggregator.serve import ServeOptions, serve
from fedlearn_aggregator.tally import Tally
from fedlearn_aggregator.writer import Writer
from tests.aggregator.devices import start_model
from tests.aggregator.service import make_task
from tests.aggregator.test_store import Failing


@pytest.mark.parametrize("finished", [False, True])
def test_a_broken_store_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    writers: list[Writer] = []

    def keep(path: Path) -> Writer:
        writers.append(Writer(path))
        return writers[-1]

    async def scenario() -> None:
        tasks: list[asyncio.Task[None]] = []

        async def break_store() -> None:
            (writer,) = writers
            writer._db = Failing(writer._db, "COMMIT", "ROLLBACK")  # type: ignore[assignment]
            with pytest.raises(StorageError):
                await writer.do(store.load_task)

        def listening(_url: str) -> None:
            tasks.append(asyncio.create_task(break_store()))

        options = ServeOptions(tmp_path, "127.0.0.1", 0, insecure=True, interfaces=None)
        with pytest.raises(StorageError, match="broke") as caught:
            await serve(options, listening)
        assert caught.value.exit_code == ExitCode.IO
        assert "restart" in caught.value.hint
        await tasks[0]

    task = make_task(Policy(1, 1))
    begin(tmp_path, task, start_model(), time.time(), force=False)
    if finished:
        with closing(schema.open_writer(tmp_path / schema.FILE_NAME)) as db:
            store.finish_round(
                db, task, 1, State.CLOSED, closed=9.0, downloads=Tally(), next_opens=None
            )
    monkeypatch.setattr(serving, "Writer", keep)
    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert not (tmp_path / "serve.json").exists()
