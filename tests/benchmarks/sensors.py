# SPDX-License-Identifier: Apache-2.0
"""`make bench-sensors`: what collecting costs, in figures.

A process that collects reads a pseudo-terminal: 100 Hz of six channels, as text and as CBOR; an
hour of it, replayed faster; a flood of garbage; one channel with scores. CPU is that of the process
by the kernel's accounts, memory is resident. Nothing here is a test: what it finds is written down.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedlearn import command
from fedlearn.collect.sequence import encode
from fedlearn_demo.meter import child_pids, cpu_s, memory
from tests import models
from tests.client.collect.harness import Collecting, Port

OUT = Path("build/bench/sensors.json")
RATE_HZ = 100
CHANNELS = ("ax", "ay", "az", "wx", "wy", "wz")
HOUR_S = 3600
SYNC_S = 30.0
SAMPLES = (
    f"channels = {json.dumps(CHANNELS)}\nwindow = 100\nstride = 50\nstep = 0.02\nmax_gap_s = 60"
)

Values = tuple[float, ...]
Sender = Callable[[int, Values], bytes]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all of it and write the file."""
    parser = argparse.ArgumentParser(prog="bench-sensors", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="at 100 Hz (default: 60)")
    parser.add_argument("--speed", type=float, default=30.0, help="of the hour (default: 30)")
    options = parser.parse_args(arguments)
    command.stop_on_signals()
    return command.run("bench-sensors", lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True)

    figures: dict[str, object] = {}
    for name, sender in (("lines", _line), ("cbor", encode)):
        say(f"{RATE_HZ} Hz of {len(CHANNELS)} channels, {name}")
        figures[f"steady_{name}"] = _steady(name, sender, options.seconds)
    say(f"an hour, {options.speed:g} times as fast")
    figures["hour"] = _hour(options.speed)
    say("a flood")
    figures["flood"] = _flood()
    say("with scores")
    figures["scores"] = _scores(options.seconds)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    print(json.dumps(figures, indent=2))
    return 0


def _line(_: int, values: Values) -> bytes:
    return (",".join(f"{value:.4f}" for value in values) + "\r\n").encode()


def _values(number: int) -> Values:
    return tuple(math.sin(number / 20 + channel) for channel in range(len(CHANNELS)))


@contextmanager
def _collecting(
    source: str, samples: str = SAMPLES, more: str = "", sync_s: float = SYNC_S
) -> Iterator[tuple[Collecting, Port]]:
    with tempfile.TemporaryDirectory() as folder:
        device, port = Collecting(Path(folder)), Port(Path(folder) / "port")
        config = device.configure(
            f'kind = "serial"\nport = "port"\n{source}', "", f"[ring]\nsync_s = {sync_s}"
        )
        text = config.read_text("utf-8")
        before = text[text.index("[samples]") : text.index("[ring]")]
        config.write_text(text.replace(before, f"[samples]\n{samples}\n") + more, "utf-8")
        device.start()
        try:
            device.until(lambda status: status.state == "reading")
            yield device, port
        finally:
            assert device.process is not None
            device.process.terminate()
            device.process.wait(30)
            port.unplug()


def _play(
    port: Port, sender: Sender, count: int, rate_hz: float, look: Callable[[int], None]
) -> None:
    """Send `count` samples in time; `look` is called now and then with how many were sent."""
    began = time.monotonic()
    port.send(b"\n")
    sent = 0
    while sent < count:
        due = min(count, 1 + int((time.monotonic() - began) * rate_hz))
        while sent < due:
            port.send(sender(sent, _values(sent)))
            sent += 1
        look(sent)
        time.sleep(min(0.01, 1 / rate_hz))


def _pid(device: Collecting) -> int:
    assert device.process is not None
    return device.process.pid


def _resident(pid: int) -> int:
    found = memory(pid)
    assert found is not None
    return found.rss_bytes


def _steady(name: str, sender: Sender, seconds: float) -> dict[str, float]:
    with _collecting(f'format = "{name}"') as (device, port):
        pid = _pid(device)
        _play(port, sender, 5 * RATE_HZ, RATE_HZ, lambda _: None)  # the start is not counted
        before, began = cpu_s(pid), time.monotonic()
        _play(port, sender, int(seconds * RATE_HZ), RATE_HZ, lambda _: None)
        took = time.monotonic() - began
        wanted = int((seconds + 5) * RATE_HZ) - 1
        device.until(lambda status: status.counts.samples >= wanted)
        return {
            "seconds": round(took, 1),
            "cpu_percent_of_a_core": round(100 * (cpu_s(pid) - before) / took, 2),
            "rss_mb": round(_resident(pid) / 1e6, 1),
        }


def _hour(speed: float) -> dict[str, float]:
    sizes: list[tuple[int, int]] = []
    # As many windows wait for their sync as in an hour of one hour.
    with _collecting('format = "lines"', sync_s=SYNC_S / speed) as (device, port):
        pid, count = _pid(device), HOUR_S * RATE_HZ

        def look(sent: int) -> None:
            if not sizes or sent - sizes[-1][0] >= count // 60:  # once in a minute of the stream
                sizes.append((sent, _resident(pid)))

        _play(port, _line, count, RATE_HZ * speed, look)
        status = device.until(lambda status: status.counts.samples >= count - 10)
        sizes.append((count, _resident(pid)))
        written = _io(pid)["write_bytes"]
        tenth, half = (sizes[int(len(sizes) * share)][1] for share in (0.1, 0.5))
        return {
            "samples": status.counts.samples,
            "garbage": status.counts.garbage,
            "windows": status.counts.windows,
            "cpu_s": round(cpu_s(pid), 2),
            "rss_mb_after_a_tenth": round(tenth / 1e6, 3),
            "rss_mb_at_the_end": round(sizes[-1][1] / 1e6, 3),
            "rss_growth_kb_since_a_tenth": round((sizes[-1][1] - tenth) / 1e3, 1),
            "rss_growth_kb_since_half": round((sizes[-1][1] - half) / 1e3, 1),
            "written_mb": round(written / 1e6, 2),
        }


def _io(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/io").read_text("ascii").splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def _flood() -> dict[str, float]:
    with _collecting('format = "lines"') as (device, port):
        pid, sent = _pid(device), 0
        noise = os.urandom(1 << 20).replace(b"\n", b"\r")
        before, began = cpu_s(pid), time.monotonic()
        while time.monotonic() - began < 10:
            port.send(noise[:65536])
            sent += 65536
        took = time.monotonic() - began
        used = cpu_s(pid) - before
        lines = b"".join(_line(n, _values(n)) for n in range(10_000))
        port.send(b"\n" + lines[:2000])
        device.until(lambda status: status.counts.samples > 10)
        valid, began = cpu_s(pid), time.monotonic()
        for _ in range(10):
            port.send(lines)
        valid, valid_s = cpu_s(pid) - valid, time.monotonic() - began
        return {
            "samples_per_second": round(100_000 / valid_s),
            "samples_cpu_us_each": round(1e6 * valid / 100_000, 1),
            "bytes_per_second": round(sent / took),
            "cpu_percent_of_a_core": round(100 * used / took, 1),
            "rss_mb": round(_resident(pid) / 1e6, 1),
        }


def _scores(seconds: float) -> dict[str, float]:
    """One channel at 100 Hz, windows of 64, by the vibration autoencoder of the tests."""
    samples = 'channels = ["g"]\nwindow = 64\nstep = 0.015625\nmax_gap_s = 60'
    with _collecting("", samples, "[score]\nenabled = true\n") as (device, port):
        folder = device.path / "state/models"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.tflite").write_bytes(models.AUTOENCODER_PATH.read_bytes())

        def send(_: int, values: Values) -> bytes:
            return f"{values[0]:.4f}\r\n".encode()

        _play(port, send, 10 * RATE_HZ, RATE_HZ, lambda _: None)
        device.until(lambda status: status.score is not None)
        (scorer,) = child_pids(_pid(device))
        before, began = cpu_s(scorer), time.monotonic()
        _play(port, send, int(seconds * RATE_HZ), RATE_HZ, lambda _: None)
        took = time.monotonic() - began
        return {
            "scorer_cpu_percent_of_a_core": round(100 * (cpu_s(scorer) - before) / took, 2),
            "scorer_rss_mb": round(_resident(scorer) / 1e6, 1),
        }


if __name__ == "__main__":
    sys.exit(main())
