# SPDX-License-Identifier: Apache-2.0
"""Models over real HTTP: whole, in part, as a difference."""

import asyncio
from pathlib import Path

from fedlearn.wire import codec, delta
from fedlearn.wire.messages import (
    Difference,
)
from fedlearn_aggregator.rounds import Policy
from fedlearn_aggregator.tally import LISTED, Tally
from tests.aggregator.devices import (
    MAX_BYTES,
    Answer,
    start_model,
)
from tests.aggregator.service import blocking, make_task, run_round, service

POLICY = Policy(2, 1, max_rounds=3)


def test_models_are_immutable_and_resumable(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY)) as running:
            device, data = running.device("a"), start_model().data
            path = f"/v1/models/{start_model().digest.hex()}"
            etag = f'"{start_model().digest.hex()}"'

            async def get(path: str = path, **headers: str) -> Answer:
                return await blocking(lambda: device.request("GET", path, **headers))

            whole = await get()
            assert (whole.status, whole.body, whole.headers["ETag"]) == (200, data, etag)
            assert (await get(If_None_Match=etag)).status == 304
            rest = await get(Range="bytes=50000-", If_Range=etag)
            assert (rest.status, rest.body) == (206, data[50000:])
            assert rest.headers["Content-Range"] == f"bytes 50000-{len(data) - 1}/{len(data)}"
            assert (await get(Range="bytes=0-0")).body == data[:1]
            assert (await get(Range="bytes=-5")).body == data[-5:]
            assert (await get(Range="bytes=50000-", If_Range='"other"')).body == data
            assert (await get(Range="bytes=0-1,3-4")).body == data
            behind = await get(Range=f"bytes={len(data)}-")
            assert behind.status == 416
            assert behind.refusal.error
            assert (await get("/v1/models/" + "0" * 64)).status == 404
            assert (await get("/v1/models/../task")).status == 404
            assert (await get(path + "?from=nonsense")).status == 404

    asyncio.run(scenario())


def test_a_known_model_is_brought_up_to_date_by_a_difference(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY)) as running:
            device, base = running.device("a"), start_model()
            await run_round(running, "a", "b")
            target = running.coordinator.model
            path = f"/v1/models/{target.digest.hex()}?from="
            answers = await asyncio.gather(
                *(
                    blocking(running.device(f"d{i}").request, "GET", path + base.digest.hex())
                    for i in range(5)
                )
            )
            assert len({each.body for each in answers}) == 1
            assert len(answers[0].body) < len(base.data) // 10
            found = codec.decode(Difference, answers[0].body, max_bytes=MAX_BYTES)
            assert (found.base, found.target) == (base.digest, target.digest)
            assert delta.apply_difference(base.data, found.encoding, found.data) == target.data
            unknown = await blocking(device.request, "GET", path + "ab" * 32)
            assert unknown.headers["Content-Type"] == "application/octet-stream"
            assert unknown.body == target.data

    asyncio.run(scenario())


def test_only_whole_models_are_counted_and_in_bounded_memory(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY)) as running:
            device, size = running.device("a"), len(start_model().data)
            path = f"/v1/models/{start_model().digest.hex()}"

            def get(times: int, **headers: str) -> None:
                for _ in range(times):
                    device.request("GET", path, None, **headers)

            await blocking(lambda: get(3, Range="bytes=0-0"))
            await blocking(lambda: get(3, If_None_Match=f'"{start_model().digest.hex()}"'))
            assert running.coordinator.downloads == Tally()
            await blocking(get, LISTED + 1)
            found = running.coordinator.downloads
            assert (found.count, found.total) == (LISTED + 1, (LISTED + 1) * size)
            assert found.first == (size,) * LISTED
            await run_round(running, "a", "b")
            assert running.coordinator.downloads == Tally()
            running.coordinator.count_download(start_model().digest, size)  # an old model
            assert running.coordinator.downloads == Tally()

    asyncio.run(scenario())
