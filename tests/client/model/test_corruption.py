# SPDX-License-Identifier: Apache-2.0
"""Invariant: whatever a `.tflite` holds, it is used, or refused by one error of one line.

`Model.parse` gives a model or raises ModelError. Everything that is done with a parsed model before
training then works or raises FedlearnError. No file takes more than `MOST_BYTES` of memory or
`MOST_SECONDS`. And what parsed does not crash the TFLite runtime, which is C++ and believes it.

A failure names the seed: `mutant(seed)` makes the file again.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tflite

from fedlearn import cli, probe
from fedlearn.errors import ExitCode, FedlearnError, ModelError
from fedlearn.inspect import inspect_model
from fedlearn.model import Model, flatbuffer
from fedlearn.model import model as model_module
from fedlearn.runtime import is_litert
from fedlearn.trainer.local import read_model
from fedlearn.trainer.tail import Tail
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.trainer.worker import peak_rss_bytes
from fedlearn.wire.messages import TAILS
from fedlearn_aggregator import cli as aggregator_cli
from tests.client.model import samples
from tests.client.model.mutations import File, Mutator, rewritten
from tests.client.networks import Network, _options

MUTANTS = 10_000
# Of 57 kB at most, whose weights take 3 MB when they are trainable. The allocator keeps some more.
MOST_BYTES = 48_000_000
MOST_SECONDS = 5.0
# Mutants for the runtime: one in four parses.
RUN = 3_000


@cache
def _mutator() -> Mutator:
    files = []
    for data in samples.files():
        spans = [(each.offset, each.byte_count) for each in Model.parse(data).tensors]
        files.append(File(data, tuple(span for span in spans if span[1] > 256)))
    return Mutator(files)


@cache
def _networks() -> tuple[Network, ...]:
    return (samples.prefixed(), samples.separable(), samples.wide(), samples.further())


def mutant(seed: int) -> bytes:
    """Damaged bytes, or every third time a whole file with a damaged graph."""
    if seed % 3:
        return _mutator().mutant(seed)
    rng = random.Random(seed)
    return rewritten(rng.choice(_networks()), rng)


def _use(data: bytes) -> str:
    """Everything that is done with a model before training; returns what came of it."""
    try:
        model = Model.parse(data)
    except ModelError as error:
        _check_message(error)
        return "refused"
    inspect_model(model).to_text()
    for tensor in model.tensors:
        if tensor.is_constant and tensor.dtype in {"int8", "int32"}:
            assert model.array(tensor.index).shape == tensor.shape
    Model.parse(model.cut([model.exit]))
    result = "parsed"
    for name in TAILS:
        try:
            tensors = trainable_tensors(model, name)
            Tail(model, [tensor.index for tensor in tensors])
            result = "trainable"
        except FedlearnError as error:
            _check_message(error)
    return result


def _check_message(error: FedlearnError) -> None:
    text = str(error)
    assert text.isprintable(), repr(text)
    assert 10 < len(text) < 800, text


def _attack(seeds: range) -> Counter[str]:
    """Hold the invariant against the mutants of these seeds."""
    results: Counter[str] = Counter()
    for seed in seeds:
        data = mutant(seed)
        # Not tracemalloc, which makes this ten times as slow: 5 sets the peak of proc(5) back to
        # what is resident now.
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_rss_bytes()
        start = time.process_time()
        try:
            results[_use(data)] += 1
        except Exception as error:
            raise AssertionError(f"mutant {seed}: {error!r}") from error
        seconds, grown = time.process_time() - start, peak_rss_bytes() - before
        assert seconds < MOST_SECONDS, f"mutant {seed}: {seconds:.1f} s"
        assert grown < MOST_BYTES, f"mutant {seed}: {grown:,} bytes"
    return results


@pytest.mark.slow
def test_mutants_are_used_or_refused_by_one_error() -> None:
    results = _attack(range(MUTANTS))
    # Control: the mutations reach both sides of the line.
    assert min(results["refused"], results["trainable"]) > MUTANTS / 20, results


def test_the_files_themselves_are_sound() -> None:
    assert [_use(data) for data in samples.files()] == ["trainable"] * len(samples.files())


def test_without_bounds_checks_the_invariant_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: the mutants do lead out of the file, and the fuzzer sees it."""

    def unchecked(buffer: bytes, offset: int, layout: str) -> object:
        return struct.unpack_from("<" + layout, buffer, offset)[0]

    monkeypatch.setattr(flatbuffer, "read", unchecked)
    monkeypatch.setattr(model_module, "verify", lambda data: None)
    with pytest.raises(AssertionError, match=r"mutant \d+: error"):
        _attack(range(1000))


def test_without_validation_the_invariant_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: graphs that cannot be computed do reach the layers' constructors."""
    monkeypatch.setattr(model_module, "validate", lambda *arguments: None)
    with pytest.raises(AssertionError, match=r"mutant \d+: "):
        _attack(range(0, 3000, 3))


def _network(change: Callable[[Network], object], network: Network | None = None) -> bytes:
    network = network or samples.separable()
    change(network)
    return network.write()


def _operator(network: Network, code: int) -> dict[str, list[int]]:
    return next(each for each in network.operators if each["code"] == code)


_DEADLY: dict[str, Callable[[], bytes]] = {
    "a reshape whose shape is -1": lambda: _network(
        lambda n: _operator(n, tflite.BuiltinOperator.RESHAPE).update(inputs=[6, -1])
    ),
    "a depthwise convolution without bias": lambda: _network(
        lambda n: _operator(n, tflite.BuiltinOperator.DEPTHWISE_CONV_2D)["inputs"].pop()
    ),
    "an ADD of scales too far apart": lambda: _network(
        lambda n: n.tensors[8].update(scales=np.array([1e9], np.float32)), samples.prefixed()
    ),
}


def _run_unchecked(data: bytes) -> int:
    command = [sys.executable, "-m", "tests.client.model.unchecked"]
    return subprocess.run(command, input=data, capture_output=True, check=False).returncode


@pytest.mark.parametrize("name", _DEADLY)
def test_what_kills_the_runtime_is_refused(name: str) -> None:
    data = _DEADLY[name]()
    with pytest.raises(ModelError, match="cannot be computed"):
        Model.parse(data)
    # Control: it does kill it, and a sound file does not.
    assert _run_unchecked(data) < 0
    assert _run_unchecked(samples.separable().write()) == 0


def test_offsets_that_only_the_runtime_follows_are_checked() -> None:
    """The name of the metadata is said to be a gigabyte long; fedlearn never reads it."""
    data = bytearray(samples.files()[0])
    at = data.index(b"min_runtime_version") - 4
    data[at : at + 4] = (1 << 30).to_bytes(4, "little")
    with pytest.raises(ModelError, match="corrupt"):
        Model.parse(bytes(data))
    # Control; ai-edge-litert has a verifier of its own.
    assert (_run_unchecked(bytes(data)) < 0) != is_litert()


@pytest.mark.slow
def test_the_runtime_survives_what_parses() -> None:
    """One process runs them all; its last line is the mutant that killed it, if one did."""
    done = _crashes("checked")
    assert done.returncode == 0, f"mutant {done.stdout.split()[-1]}: {done.returncode}"
    assert done.stdout.split()[-1] == "done"
    # Control: thousands of sessions were opened, and without the checks one of them is the last.
    assert int(done.stdout.split()[-2]) > RUN / 20
    assert _crashes("unchecked").returncode < 0


def _crashes(mode: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.client.model.unchecked", mode, str(RUN)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_file_that_crashes_the_runtime_is_said_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line of defence: a file that passes every check and crashes all the same."""
    path, task = tmp_path / "deadly.tflite", tmp_path / "task"
    path.write_bytes(next(iter(_DEADLY.values()))())
    monkeypatch.setattr(model_module, "validate", lambda *arguments: None)
    monkeypatch.setattr(probe, "COMMAND", (sys.executable, "-m", "tests.client.model.unchecked"))
    with pytest.raises(ModelError, match=r"runtime crashes on this file \(SIGSEGV\)"):
        read_model(path)
    for program, arguments in (
        (cli, ["model", "inspect", str(path)]),
        (aggregator_cli, ["init", "--data-dir", str(task), "--task", "t", "--model", str(path)]),
    ):
        assert program.main(arguments) == ExitCode.DATA
        assert "crashes on this file" in capsys.readouterr().err
    assert not task.exists()


def test_a_file_that_takes_too_long_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.2)
    with pytest.raises(ModelError, match="needs more than"):
        probe.probe(b"")


def test_a_sound_file_passes_the_probe() -> None:
    for data in (*samples.files(), b"no model at all"):
        probe.probe(data)


@pytest.mark.parametrize(
    "code",
    ["raise SystemExit(1)", "import nowhere", "print('something else')", "raise SystemExit(77)"],
)
def test_a_probe_that_does_not_work_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """Control: neither a sound file nor a damaged one passes then."""
    monkeypatch.setattr(probe, "COMMAND", (sys.executable, "-c", code))
    with pytest.raises(FedlearnError, match="check of the file did not work") as caught:
        probe.probe(samples.files()[0])
    assert not isinstance(caught.value, ModelError)
    if "nowhere" in code:
        assert "No module named 'nowhere'" in caught.value.message
    monkeypatch.setattr(probe, "COMMAND", ("/nowhere/python",))
    with pytest.raises(FedlearnError, match="cannot start"):
        probe.probe(b"")


def test_a_signal_without_a_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    kill = "import os; os.kill(os.getpid(), 40)"
    monkeypatch.setattr(probe, "COMMAND", (sys.executable, "-c", kill))
    with pytest.raises(ModelError, match=r"\(signal 40\)"):
        probe.probe(b"")


def test_the_probe_imports_this_package(tmp_path: Path) -> None:
    """Also where only PYTHONPATH leads to it, and beside files with the names of modules."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "m.tflite").write_bytes(samples.files()[0])
    code = "import sys; from fedlearn.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "model", "inspect", "m.tflite"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("shapes", "sound"),
    [
        ([(1, 3, 4), (1, 4, 5)], True),
        ([(1, 3, 4)], False),
        ([(1, 3, 4), (1, 3, 5)], False),
        ([(1, 3, 4), (4,)], False),
    ],
)
def test_products_of_matrices_have_two_that_fit(shapes: list[tuple[int, ...]], sound: bool) -> None:
    """XNNPACK, which ai-edge-litert uses for an application, crashes on one operand alone."""
    network = Network()
    numbers = [network.tensor(shape, scales=0.1) for shape in shapes]
    rng = np.random.default_rng(0)
    for at, shape in enumerate(shapes[1:], 1):
        numbers[at] = network.tensor(shape, scales=0.1, data=rng.integers(-9, 9, shape, np.int8))
    output = network.tensor((1, 3, 5), scales=0.1)
    network.operator(
        tflite.BuiltinOperator.BATCH_MATMUL,
        numbers,
        [output],
        _options(tflite.BuiltinOptions.BatchMatMulOptions, "BatchMatMulOptions"),
    )
    network.inputs, network.outputs = numbers[:1], [output]
    if sound:
        probe.probe(Model.parse(network.write()).data)
        return
    with pytest.raises(ModelError, match="BATCH_MATMUL"):
        Model.parse(network.write())
