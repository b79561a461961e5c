# SPDX-License-Identifier: Apache-2.0
"""The contenders of the training benchmark compute the same thing, and all of them learn."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.model import Model
from tests.benchmarks import comparison
from tests.benchmarks.case import BATCH, CASES, SAMPLES, Case
from tests.benchmarks.float_net import read

RATE = 0.02


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "digits.npz"
    comparison.write_data(path)
    return path


def _inputs(case: Case) -> tuple[Any, Any]:
    """A batch like the features of the case: not negative, and most of them below one."""
    model = Model.parse(case.model.read_bytes())
    rng = np.random.default_rng(7)
    shape = (BATCH, *model.tensors[read(model, case.layers).entry].shape[1:])
    x = np.abs(0.3 * rng.normal(size=shape)).astype(np.float32)
    return x, rng.integers(0, 10, BATCH).astype(np.int32)


def _by_tflite(case: Case, steps: int, rate: float) -> tuple[list[float], dict[int, Any]]:
    from tests.benchmarks.contenders.tflite import open_steps

    interpreter = open_steps(case.steps)
    step = interpreter.get_signature_runner(f"train_{case.name}")
    x, y = _inputs(case)
    losses = [float(step(x=x, y=y, rate=np.float32(rate))["loss"]) for _ in range(steps)]
    weights = interpreter.get_signature_runner("weights")()
    return losses, {int(name[1:]): values for name, values in weights.items()}


def _by_torch(case: Case, steps: int, rate: float) -> tuple[list[float], dict[int, Any]]:
    import torch

    from tests.benchmarks.torch_net import TorchNet

    class OnFeatures(TorchNet):
        """Takes a batch of features as TFLite has them."""

        def logits(self, features: torch.Tensor) -> torch.Tensor:
            values = {self._net.entry: features}
            return self._run(self._net.tail, values, self._net.tail[-1].output)

    net = OnFeatures(Model.parse(case.model.read_bytes()), case.layers)
    x, y = _inputs(case)
    features, labels = torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))
    if features.ndim == 4:
        features = features.permute(0, 3, 1, 2)
    optimiser = torch.optim.SGD(net.parameters, lr=rate)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(net.logits(features), labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    trained = [n for n, value in net.weights.items() if value.requires_grad]
    return losses, {number: net.as_in_file(number).numpy() for number in trained}


@pytest.mark.parametrize("name", CASES)
def test_the_hand_written_backward_pass_is_that_of_autograd(name: str) -> None:
    """From the same weights, on the same batch: the same step in every trained tensor."""
    pytest.importorskip("torch", reason="PyTorch is not installed: `make test-benchmarks`")
    case = CASES[name]
    _, start = _by_torch(case, 0, RATE)
    for steps in (1, 3):
        losses, theirs = _by_torch(case, steps, RATE)
        made, mine = _by_tflite(case, steps, RATE)
        assert made == pytest.approx(losses, rel=1e-4)
        for number, expected in theirs.items():
            moved = np.abs(expected - start[number]).max()
            assert moved > 1e-5, f"tensor {number} does not move: this would compare nothing"
            np.testing.assert_allclose(mine[number], expected, atol=1e-4 * moved + 1e-6, rtol=0)


def test_another_step_would_be_found() -> None:
    """Control: a hundredth more learning rate is a difference that the tolerance shows."""
    pytest.importorskip("torch", reason="PyTorch is not installed: `make test-benchmarks`")
    case = CASES["c"]
    _, start = _by_torch(case, 0, RATE)
    _, theirs = _by_torch(case, 1, RATE)
    _, mine = _by_tflite(case, 1, 1.01 * RATE)
    for number, expected in theirs.items():
        moved = np.abs(expected - start[number]).max()
        assert np.abs(mine[number] - expected).max() > 1e-4 * moved + 1e-6


def test_a_step_of_one_case_leaves_the_frozen_weights() -> None:
    case = CASES["b"]
    _, before = _by_tflite(case, 1, 0.0)
    losses, after = _by_tflite(case, 5, RATE)
    assert losses[-1] < losses[0]
    changed = {number for number in before if not np.array_equal(before[number], after[number])}
    net = read(Model.parse(case.model.read_bytes()), case.layers)
    assert changed == {
        number for each in net.tail if each.weight >= 0 for number in (each.weight, each.bias)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("contender", comparison.CONTENDERS)
def test_every_contender_learns(contender: str, name: str, data: Path) -> None:
    if contender == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed: `make test-benchmarks`")
    result = comparison.run_once(contender, CASES[name], data, epochs=3)
    assert "absent" not in result, result["absent"]
    first, *_, last = result["epoch_losses"]
    assert last < 0.7 * first
    assert result["samples"] == 3 * SAMPLES - BATCH
    assert result["samples_per_cpu_s"] > 0
    assert 10 < result["peak_rss_mb"] < 2_000


def test_the_watch_counts_the_products_between_the_first_step_and_the_last() -> None:
    from fedlearn.trainer import exact
    from tests.benchmarks.contenders.profile import Watch

    a = np.ones((400, 400), np.float32)
    untouched = exact.product
    watch = Watch()
    try:
        watch(0, 0.0, 0.0)
        exact.product(a, a)
        time.sleep(0.05)
        watch(0, 0.0, 0.0)
        share = watch.share()
        assert 0 < share < 1
        exact.product(a, a)  # of another run
        assert watch.share() == share
    finally:
        watch.take_off()
    assert exact.product is untouched


@pytest.mark.slow
def test_the_frozen_part_is_timed_on_both_sides(data: Path) -> None:
    found = comparison.run_once("prefix", CASES["b"], data, epochs=1)
    assert set(found) == {"ours", "interpreter"}
    assert min(found.values()) > 0


@pytest.mark.slow
def test_the_two_profiles_agree(data: Path) -> None:
    """Each is the other's control; cProfile makes what is no product look longer than it is."""
    profile = comparison.run_once("profile", CASES["c"], data, epochs=3)
    shares = {each["function"]: each["share"] for each in profile["functions"]}
    assert 0.6 < profile["blas_share"] / shares["exact.product"] < 1.7
