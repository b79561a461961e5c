# SPDX-License-Identifier: Apache-2.0
"""A port, as a pseudo-terminal: whatever comes or goes, the stream goes on and all is counted."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from fedlearn.collect.ring import read_ring
from fedlearn.collect.sample import Counts
from fedlearn.collect.sequence import encode
from fedlearn.collect.serialport import SerialSource, find_port
from fedlearn.collect.settings import SamplesConfig, SourceConfig
from fedlearn.collect.sources import Opener
from fedlearn.errors import FedlearnError, MissingFileError
from tests.client.collect.harness import Collecting, Port

SERIAL = 'kind = "serial"\nport = "port"'


def lines(first: int, count: int) -> bytes:
    return b"".join(
        b"%d,%d\r\n" % (number % 60, -(number % 60)) for number in range(first, first + count)
    )


def starts(device: Collecting) -> list[int]:
    """The first value of each window, which is the number of its first sample."""
    grid, windows = read_ring(device.ring)
    return [round(grid.real(each.data[0], 0)) for each in windows]


def test_a_stream_becomes_windows(device: Collecting, port: Port) -> None:
    device.configure(SERIAL)
    device.start()
    device.until(lambda status: status.state == "reading")
    port.send(b"3,4\n" + lines(0, 40))
    status = device.until(lambda status: status.stored == 10)
    assert (status.counts.halves, status.counts.samples, status.counts.garbage) == (1, 40, 0)
    assert starts(device) == list(range(0, 40, 4))
    assert device.stop() == 0
    assert device.status.state == "stopped"


def test_a_stop_loses_nothing_that_came(device: Collecting, port: Port) -> None:
    device.configure(SERIAL, more="[ring]\nsync_s = 3600")
    device.start()
    device.until(lambda status: status.state == "reading")
    port.send(b"\n" + lines(0, 40))
    device.until(lambda status: status.counts.windows == 10)
    assert device.status.stored == 0
    assert device.stop(signal.SIGINT) == 130
    assert len(starts(device)) == 10


def test_a_kill_costs_what_was_not_synced(device: Collecting, port: Port) -> None:
    device.configure(SERIAL, more="[ring]\nsync_s = 2")
    device.start()
    device.until(lambda status: status.state == "reading")
    port.send(b"\n" + lines(0, 40))
    device.until(lambda status: status.stored == 10)
    port.send(lines(40, 20))
    device.until(lambda status: status.counts.windows == 15)
    assert device.status.stored == 10
    assert device.stop(signal.SIGKILL) == -signal.SIGKILL
    assert starts(device) == list(range(0, 40, 4))
    device.start()
    device.until(lambda status: status.state == "reading" and status.alive)
    port.send(b"\n" + lines(20, 4))
    device.until(lambda status: status.stored == 1)
    assert starts(device) == [*range(0, 40, 4), 20]


def test_unplugged_and_put_back(device: Collecting, port: Port) -> None:
    device.configure(SERIAL)
    device.start()
    for turn in range(3):
        device.until(lambda status, turn=turn: status.counts.opened == turn + 1)  # type: ignore[misc]
        port.send(b"9\n" + lines(10 * turn, 6) + b"50,-")
        device.until(lambda status, turn=turn: status.counts.samples == 6 * turn + 6)  # type: ignore[misc]
        port.unplug()
        device.until(lambda status: status.state == "waiting for the sensor")
        assert device.status.last_error
        port.plug()
    status = device.until(lambda status: status.counts.opened == 4 and status.stored == 3)
    # Two samples before each break: no window reaches over it, and no half line is a sample.
    assert status.counts.breaks == 3
    assert starts(device) == [0, 10, 20]
    port.send(b"\n" + lines(30, 1))
    device.until(lambda status: not status.last_error)


def test_it_waits_for_a_port_that_is_not_there(device: Collecting, port: Port) -> None:
    port.unplug()
    device.configure(SERIAL)
    device.start()
    status = device.until(lambda status: status.counts.failures > 1)
    assert "No such file" in status.last_error
    assert device.log.count("No such file") == 1  # once, not every few seconds
    port.plug()
    device.until(lambda status: status.state == "reading")


def test_garbage_between_lines(device: Collecting, port: Port) -> None:
    device.configure(SERIAL)
    device.start()
    device.until(lambda status: status.state == "reading")
    noise = random.Random(1).randbytes(3000).replace(b"\n", b"\r")
    port.send(b"\n" + lines(0, 8) + noise[:500] + b"\n" + lines(8, 8) + b"1,2,3\n" + lines(16, 6))
    port.send(b"4,\n" + noise + b"\n" + lines(24, 4))
    status = device.until(lambda status: status.stored == 6)
    assert starts(device) == [0, 4, 8, 12, 16, 24]
    assert (status.counts.garbage, status.counts.overlong) == (3, 1)
    assert status.counts.breaks >= 3


def test_a_wrong_rate_is_named(device: Collecting, port: Port) -> None:
    """At another rate every byte is another one: no sample among thousands of bytes."""
    device.configure(SERIAL)
    device.start()
    device.until(lambda status: status.state == "reading")
    port.send(bytes(byte ^ 0xA5 for byte in lines(0, 800)))
    status = device.until(lambda status: "source.baud" in status.last_error)
    assert status.counts.samples == 0
    port.send(b"\n" + lines(0, 8))  # it is mended
    device.until(lambda status: not status.last_error and status.counts.samples == 8)


def test_a_flood_is_survived(device: Collecting, port: Port) -> None:
    device.configure(SERIAL, more="[ring]\nsize_kib = 64\nmax_mib_a_day = 0.01\nsync_s = 0.1")
    device.start()
    device.until(lambda status: status.state == "reading")
    port.send(b"x" * 300_000 + b"\n")
    port.send(lines(0, 60) * 400)
    port.send(b"\x00\xff" * 100_000 + b"\n" + lines(0, 4))
    status = device.until(lambda status: status.counts.samples == 24_004)
    assert status.counts.overlong == 1
    # What a memory card should not have to take was not written.
    status = device.until(lambda status: status.stored + status.refused == 6001)
    assert status.refused > 3000
    assert sum(each.stat().st_size for each in device.ring.iterdir()) <= 64 * 1024
    assert status.rss_bytes < 40e6


def test_cbor_with_losses(device: Collecting, port: Port) -> None:
    device.configure(SERIAL + '\nformat = "cbor"\nlabelled = true')
    device.start()
    device.until(lambda status: status.state == "reading")
    items = [encode(number, (number % 60, 0.5), number // 8, labelled=True) for number in range(40)]
    torn = bytearray(items[20])
    torn[4] ^= 8
    port.send(items[0][3:] + b"".join(items[1:20]) + torn + b"".join(items[21:30]))
    port.send(b"".join(items[32:]))
    status = device.until(lambda status: status.counts.samples == 36)
    assert (status.counts.lost, status.counts.breaks) == (3, 2)
    device.until(lambda status: status.stored == 5)
    _, windows = read_ring(device.ring)
    assert sorted((each.label or 0, each.data[0] // 2) for each in windows) == [
        *((0, 1), (1, 9), (3, 25), (4, 32), (4, 36))
    ]


def test_usb_ports_by_id(monkeypatch: pytest.MonkeyPatch) -> None:
    from serial.tools import list_ports, list_ports_common

    def port(device: str, number: str) -> list_ports_common.ListPortInfo:
        info = list_ports_common.ListPortInfo(device)
        info.vid, info.pid, info.serial_number = 0x2341, 0x43, number
        return info

    ports = [port("/dev/ttyACM0", "A1"), port("/dev/ttyACM3", "B2")]
    monkeypatch.setattr(list_ports, "comports", lambda: ports)
    assert find_port("usb:2341:0043:B2") == "/dev/ttyACM3"
    assert find_port("/dev/ttyS0") == "/dev/ttyS0"
    with pytest.raises(FedlearnError, match="ttyACM0 and /dev/ttyACM3"):
        find_port("usb:2341:0043")
    with pytest.raises(MissingFileError):
        find_port("usb:2341:0044")


def test_the_baud_rate_is_set(tmp_path: Path, port: Port) -> None:
    """Every rate that pyserial knows; a pseudo-terminal has one, too."""
    import termios

    samples = SamplesConfig(("a", "b"), 4, step=0.5)
    for baud, constant in ((9600, termios.B9600), (115_200, termios.B115200)):
        config = SourceConfig("serial", str(port.name), baud)
        source = Opener(config, samples, tmp_path, tmp_path, Counts()).open()
        assert isinstance(source, SerialSource)
        assert termios.tcgetattr(source._handle)[4] == constant
        source.close()
