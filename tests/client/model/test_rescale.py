# SPDX-License-Identifier: Apache-2.0
"""Other scales, the same network: judged by the real interpreter and by float64 arithmetic.

The oracle computes the dequantised network itself, from integers and scales that it reads from the
file by the schema's generated code, so a wrong scale, bias or zero point shows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tflite
from numpy.typing import NDArray

from fedlearn.model import Model
from fedlearn.model.rescale import Grid, Rescaled, grid_of, held, rescale
from fedlearn.model.ties import Ties
from fedlearn.runtime import Session
from fedlearn_demo.digits import load_test
from tests import models
from tests.client.networks import Network, concatenation, fully_connected, layer, softmax

DENSE = tflite.BuiltinOperator.FULLY_CONNECTED
RELU = tflite.ActivationFunctionType.RELU
Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def untrained() -> Model:
    return Model.parse(models.UNTRAINED_PATH.read_bytes())


@pytest.fixture(scope="module")
def images() -> NDArray[np.int8]:
    return (load_test()[0][:64].astype(np.int16) - 128).astype(np.int8)


def activations(model: Model) -> dict[str, int]:
    """The int8 tensors that the operators make, by what makes them and its number."""
    return {f"{op.name} {op.index}": op.outputs[0] for op in model.operators}


def stored(data: bytes) -> dict[int, tuple[Floats, NDArray[np.int64]]]:
    """Scales and zero points by the schema's generated code."""
    graph = tflite.Model.GetRootAs(data, 0).Subgraphs(0)
    found = {}
    for index in range(graph.TensorsLength()):
        quantisation = graph.Tensors(index).Quantization()
        if quantisation is not None and quantisation.ScaleLength():
            found[index] = (
                quantisation.ScaleAsNumpy().astype(np.float64),
                quantisation.ZeroPointAsNumpy(),
            )
    return found


def float_network(data: bytes, x: NDArray[np.int8]) -> dict[int, Floats]:
    """Real values of every activation of the digits network, from the dequantised constants.

    Written for CONV_2D of stride 2 and SAME padding on even or odd sides, RESHAPE and
    FULLY_CONNECTED; nothing is rounded or cut off but by ReLU.
    """
    model, scales = Model.parse(data), stored(data)

    def real(index: int) -> Floats:
        values, (scale, zero) = model.array(index), scales[index]
        shape = (-1,) + (1,) * (values.ndim - 1)
        return (values.astype(np.float64) - zero.reshape(shape)) * scale.reshape(shape)

    scale, zero = scales[model.entry]
    made: dict[int, Floats] = {model.entry: (x.astype(np.float64) - zero) * scale}
    for operator in model.operators:
        if operator.name == "SOFTMAX":
            break
        value = made[operator.inputs[0]]
        output = model.tensors[operator.outputs[0]]
        if operator.name == "RESHAPE":
            made[output.index] = value.reshape(len(x), -1)
            continue
        weight = real(operator.inputs[1])
        bias = real(operator.inputs[2]) if operator.inputs[2] >= 0 else 0.0
        y = _strided(value, weight) if operator.name == "CONV_2D" else value @ weight.T
        y = y + bias
        last = operator.outputs[0] == model.operators[-1].inputs[0]
        made[output.index] = y if last else np.maximum(y, 0.0)
    return made


def _strided(x: Floats, weight: Floats) -> Floats:
    count, side = len(x), x.shape[1]
    out = -(-side // 2)
    total = max((out - 1) * 2 + 3 - side, 0)
    padded = np.zeros((count, side + total, side + total, x.shape[3]))
    before = total // 2
    padded[:, before : before + side, before : before + side] = x
    y = np.zeros((count, out, out, len(weight)))
    for row in range(3):
        for column in range(3):
            cells = padded[:, row : row + 2 * out : 2, column : column + 2 * out : 2][:, :out, :out]
            y += cells @ weight[:, row, column].T
    return y


def run(data: bytes, output: int, x: NDArray[np.int8], *, delegates: bool = False) -> Floats:
    """Real values of one tensor by the interpreter."""
    model = Model.parse(data)
    scale, zero = stored(data)[output]
    raw = Session(model.cut([output]), delegates=delegates).run(x)
    return (raw.astype(np.float64) - zero) * scale


def doubled(model: Model, *names: str, factor: float = 2.0) -> Rescaled:
    """The activations that these operators make, with ranges of so many times the width."""
    made = activations(model)
    wishes = {}
    for name in names:
        low, high = held(model.tensors[made[name]])
        wishes[made[name]] = (low * factor, high * factor)
    return rescale(model, wishes)


@pytest.mark.parametrize("delegates", [False, True])
@pytest.mark.parametrize("factor", [0.9, 1.7, 6.0])
def test_each_layer_is_right_within_a_step_of_its_new_grid(
    untrained: Model, images: NDArray[np.int8], factor: float, delegates: bool
) -> None:
    names = ("CONV_2D 0", "CONV_2D 1", "FULLY_CONNECTED 3", "FULLY_CONNECTED 4")
    made = doubled(untrained, *names, factor=factor)
    assert not made.refused
    assert len(made.data) == len(untrained.data)
    truth = float_network(untrained.data, images)
    after = Model.parse(made.data)
    below = 0.0
    for name in names:
        tensor = after.tensors[activations(after)[name]]
        low, high = held(tensor)
        # Errors of the layers before go through weights whose columns' sums are below 8.
        allowed = tensor.scale * 1.01 + below
        values = run(made.data, tensor.index, images, delegates=delegates)
        expected = np.clip(truth[tensor.index], low, high)
        assert np.abs(values.ravel() - expected.ravel()).max() <= allowed
        below = allowed * _gain(after, name)


def _gain(model: Model, name: str) -> float:
    """By how much a layer behind can enlarge the errors of the one with this name."""
    after = {"CONV_2D 0": "CONV_2D 1", "CONV_2D 1": "FULLY_CONNECTED 3"}.get(name, "")
    after = after or "FULLY_CONNECTED 4"
    operator = next(op for op in model.operators if f"{op.name} {op.index}" == after)
    weight = model.array(operator.inputs[1]).astype(np.float64)
    scales = model.tensors[operator.inputs[1]].scales.astype(np.float64)
    return float((np.abs(weight).reshape(len(weight), -1).sum(axis=1) * scales).max())


def test_one_layer_alone_is_within_one_step(untrained: Model, images: NDArray[np.int8]) -> None:
    """Only the grid of a layer's input is new: what it makes of the same integers is the same."""
    made = doubled(untrained, "CONV_2D 1", factor=3.0)
    dense = activations(untrained)["FULLY_CONNECTED 3"]
    tensor = Model.parse(made.data).tensors[dense]
    x = run(made.data, activations(untrained)["RESHAPE 2"], images)
    weight = untrained.tensors[untrained.operators[3].inputs[1]]
    real = untrained.array(weight.index).astype(np.float64) * weight.scale
    expected = np.clip(x @ real.T, *held(tensor))
    assert np.abs(run(made.data, dense, images) - expected).max() <= tensor.scale
    # Control: without new biases and scales for the layer behind, it would be off by far.
    low, high = held(tensor)
    assert np.abs(run(untrained.data, dense, images) * 3 - expected).max() > (high - low) / 10


def test_biases_count_in_the_new_steps(untrained: Model) -> None:
    made = doubled(untrained, "CONV_2D 0", factor=5.0)
    bias = untrained.operators[1].inputs[2]
    before, after = stored(untrained.data), stored(made.data)
    weight = untrained.operators[1].inputs[1]
    x = activations(untrained)["CONV_2D 0"]
    np.testing.assert_array_equal(
        after[bias][0].astype(np.float32),
        (after[x][0].astype(np.float32) * after[weight][0].astype(np.float32)),
    )
    assert (after[x][0] / before[x][0]).item() == pytest.approx(5.0, rel=1e-6)
    old, new = untrained.array(bias), Model.parse(made.data).array(bias)
    np.testing.assert_allclose(
        new * after[bias][0], old * before[bias][0], atol=after[bias][0].max() / 2
    )
    # Nothing else changed but this, the layer's own scale, and what is tied to it.
    changed = {i for i in before if not np.array_equal(before[i][0], after[i][0])}
    assert changed == {x, bias}
    assert made.factors.keys() == {bias}


def test_tied_activations_change_together(untrained: Model) -> None:
    made = doubled(untrained, "CONV_2D 1")
    names = activations(untrained)
    assert made.grids.keys() == {names["CONV_2D 1"], names["RESHAPE 2"]}
    assert made.grids[names["CONV_2D 1"]] == made.grids[names["RESHAPE 2"]]
    # By whichever of them it is asked for.
    assert doubled(untrained, "RESHAPE 2").data == made.data


def test_wider_weight_steps_leave_the_network_as_it_was(
    untrained: Model, images: NDArray[np.int8]
) -> None:
    conv, dense = untrained.operators[1], untrained.operators[3]
    channels = np.linspace(1.0, 2.0, 16)
    made = rescale(untrained, {}, {conv.inputs[1]: channels, dense.inputs[1]: np.array([1.5])})
    assert not made.refused
    after = stored(made.data)
    np.testing.assert_allclose(
        after[conv.inputs[1]][0], stored(untrained.data)[conv.inputs[1]][0] * channels, rtol=1e-6
    )
    np.testing.assert_array_equal(
        after[conv.inputs[2]][0].astype(np.float32),
        after[conv.inputs[0]][0].astype(np.float32) * after[conv.inputs[1]][0].astype(np.float32),
    )
    old, new = untrained.array(conv.inputs[1]), Model.parse(made.data).array(conv.inputs[1])
    np.testing.assert_allclose(new * channels[:, None, None, None], old, atol=1.0 + 1e-6)
    # Weights are rounded once more, so the answer is near and not the same.
    logits = activations(untrained)["FULLY_CONNECTED 4"]
    gap = run(made.data, logits, images) - run(untrained.data, logits, images)
    assert 0 < np.abs(gap).max() < 12 * untrained.tensors[logits].scale


def test_factors_take_master_weights_along(untrained: Model) -> None:
    """What a factor says of the integers holds to the last bit of a float64."""
    conv = untrained.operators[1]
    names = activations(untrained)
    low, high = held(untrained.tensors[names["CONV_2D 0"]])
    made = rescale(
        untrained, {names["CONV_2D 0"]: (low, 3 * high)}, {conv.inputs[1]: np.full(16, 1.25)}
    )
    before, after = stored(untrained.data), stored(made.data)
    weight, bias = conv.inputs[1:3]
    step = before[weight][0] / after[weight][0]
    np.testing.assert_allclose(made.factors[weight].ravel(), step, rtol=1e-15)
    x = conv.inputs[0]
    np.testing.assert_allclose(made.factors[bias], step * before[x][0] / after[x][0], rtol=1e-14)


def test_a_relu_keeps_zero_at_the_bottom(untrained: Model) -> None:
    index = activations(untrained)["CONV_2D 0"]
    made = rescale(untrained, {index: (-5.0, 2.0)})
    assert made.grids[index] == Grid(float(np.float32(2.0 / 255)), -128)


def test_zero_is_exact_in_every_grid() -> None:
    rng = np.random.default_rng(5)
    for low, high in np.sort(rng.normal(size=(200, 2)) * 10 ** rng.uniform(-3, 3, (200, 1))):
        grid = grid_of(low, high)
        assert -128 <= grid.zero_point <= 127
        bottom, top = ((q - grid.zero_point) * grid.scale for q in (-128, 127))
        assert bottom <= 0 <= top
        assert bottom <= min(low, 0) + grid.scale * 0.51
        assert top >= max(high, 0) - grid.scale * 0.51
    for low, high in [(0, 0), (-1e-45, 0), (0, np.inf), (np.nan, 1), (2, 1)]:
        with pytest.raises(ValueError, match="no range"):
            grid_of(low, high)


def test_what_is_fixed_is_refused(untrained: Model) -> None:
    names = activations(untrained)
    weight = untrained.operators[0].inputs[1]
    wishes = {
        untrained.entry: "samples",
        names["SOFTMAX 5"]: "SOFTMAX",
        weight: "no int8 activation",
        untrained.operators[0].inputs[2]: "no int8 activation",
        999: "no int8 activation",
    }
    made = rescale(untrained, dict.fromkeys(wishes, (-1.0, 1.0)))
    for index, reason in wishes.items():
        assert reason in made.refused[index]
    assert made.data == untrained.data
    assert not made.grids
    assert not made.factors
    widths = {weight: np.ones(3), untrained.entry: np.ones(1), 999: np.ones(1)}
    widths[untrained.operators[1].inputs[1]] = np.full(16, np.nan)
    assert rescale(untrained, {}, widths).refused.keys() == widths.keys()


def test_what_no_kernel_can_do_is_refused(untrained: Model) -> None:
    names = activations(untrained)
    dense, logits = names["FULLY_CONNECTED 3"], names["FULLY_CONNECTED 4"]
    for ranges in ({logits: (-1e-9, 1e-9)}, {dense: (0.0, 1e30)}, {logits: (-1e30, 1e30)}):
        made = rescale(untrained, ranges)
        assert made.refused.keys() == ranges.keys()
        assert made.data == untrained.data
    narrow = rescale(untrained, {}, {untrained.operators[3].inputs[1]: np.array([0.9])})
    assert "would not fit" in next(iter(narrow.refused.values()))


def test_float_edges_stay(images: NDArray[np.int8]) -> None:
    model = Model.parse(models.FLOAT_EDGES_PATH.read_bytes())
    logits = next(op.outputs[0] for op in reversed(model.operators) if op.name in ties_free())
    made = rescale(model, {model.entry: (0.0, 9.0), logits: (-99.0, 99.0)})
    assert made.refused.keys() == {model.entry}
    assert made.grids.keys() == {logits}


def ties_free() -> set[str]:
    return {"FULLY_CONNECTED"}


def test_pools_and_additions_of_a_real_network() -> None:
    model = Model.parse(models.MOBILENET_PATH.read_bytes())
    rng = np.random.default_rng(3)
    x = rng.integers(-128, 128, (8, 28, 28, 1)).astype(np.int8)
    names = activations(model)
    adds = [name for name in names if name.startswith("ADD")]
    assert adds
    wishes = [*adds, "MEAN 20", "FULLY_CONNECTED 21"]
    made = doubled(model, *wishes, factor=1.5)
    assert not made.refused
    for delegates in (False, True):
        for name in wishes:
            before = run(model.data, names[name], x, delegates=delegates)
            after = run(made.data, names[name], x, delegates=delegates)
            grid = Model.parse(made.data).tensors[names[name]]
            assert np.abs(after - before).mean() < 2.5 * grid.scale
            # Control: their integers are far apart, so the scales must have changed with them.
            ints = before / model.tensors[names[name]].scale - after / grid.scale
            assert np.abs(ints).mean() > 2


def two_layers(rng: np.random.Generator, **options: Any) -> Network:
    """FULLY_CONNECTED with ReLU, then FULLY_CONNECTED; the second may read another's bias."""
    network = layer(
        DENSE,
        rng,
        input_shape=(1, 12),
        output_shape=(1, 8),
        weight_shape=(8, 12),
        options=fully_connected(activation=RELU),
        terms=12,
        channel_axis=0,
        per_channel=False,
        output_zero=-128,
    )
    return layer(
        DENSE,
        rng,
        input_shape=(1, 8),
        output_shape=(1, 8),
        weight_shape=(8, 8),
        options=fully_connected(activation=0),
        terms=8,
        channel_axis=0,
        per_channel=False,
        network=network,
        source=network.outputs[0],
        **options,
    )


def test_shared_constants_and_shared_scales_are_left_alone(rng: np.random.Generator) -> None:
    network = two_layers(rng)
    middle, bias = network.operators[1]["inputs"][0], network.operators[1]["inputs"][2]
    free = Model.parse(network.write())
    assert not rescale(free, {middle: (0.0, 99.0)}).refused  # the control
    network.tensors[bias]["buffer"] = network.tensors[network.operators[0]["inputs"][2]]["buffer"]
    shared = Model.parse(network.write())
    made = rescale(shared, {middle: (0.0, 99.0)}, {network.operators[1]["inputs"][1]: np.ones(1)})
    assert "shared" in made.refused[middle]
    assert made.data == shared.data
    # Two tensors whose quantisation is one place in the file.
    data = bytearray(free.data)
    last = free.tensors[network.outputs[0]]
    aliased = Model.parse(bytes(data))
    tensors = list(aliased.tensors)
    place = {"scales_offset": last.scales_offset, "scales": last.scales}
    tensors[middle] = _replaced(tensors[middle], place)
    aliased = _replaced(aliased, {"tensors": tuple(tensors)})
    assert "one place" in rescale(aliased, {middle: (0.0, 99.0)}).refused[middle]
    assert "one place" in rescale(aliased, {last.index: (0.0, 99.0)}).refused[last.index]


def _replaced(value: Any, changes: dict[str, Any]) -> Any:
    import dataclasses

    return dataclasses.replace(value, **changes)


def test_an_unknown_operator_pins_what_it_touches(rng: np.random.Generator) -> None:
    network = two_layers(rng)
    middle, last = network.operators[1]["inputs"][0], network.outputs[0]
    out = network.tensor((1, 8), scales=0.1)
    network.operator(tflite.BuiltinOperator.ELU, [last], [out])
    network.outputs = [out]
    model = Model.parse(network.write())
    made = rescale(model, {last: (-9.0, 9.0), out: (-9.0, 9.0), middle: (0.0, 99.0)})
    assert made.refused.keys() == {last, out}
    assert "ELU" in made.refused[last]


def test_a_tied_constant_pins_its_group(rng: np.random.Generator) -> None:
    network = two_layers(rng)
    last = network.outputs[0]
    scale, zero = network.tensors[last]["scales"], network.tensors[last]["zeros"]
    constant = network.tensor((1, 8), scales=scale, zeros=zero, data=np.ones((1, 8), np.int8))
    out = network.tensor((1, 16), scales=scale, zeros=zero)
    network.operator(
        tflite.BuiltinOperator.CONCATENATION, [last, constant], [out], concatenation(axis=1)
    )
    network.outputs = [out]
    model = Model.parse(network.write())
    assert "constant" in rescale(model, {last: (-9.0, 9.0)}).refused[last]
    group = next(g for g in Ties(model).groups if last in g.members)
    assert sorted(group.members) == [last, constant, out]
    assert group.makers == (last,)


def test_the_logits_before_a_softmax_are_free(rng: np.random.Generator) -> None:
    network = two_layers(rng)
    logits = network.outputs[0]
    out = network.tensor((1, 8), scales=1 / 256, zeros=-128)
    network.operator(tflite.BuiltinOperator.SOFTMAX, [logits], [out], softmax())
    network.outputs = [out]
    model = Model.parse(network.write())
    x = rng.integers(-128, 128, (50, 12)).astype(np.int8)
    low, high = held(model.tensors[logits])
    made = rescale(model, {logits: (2 * low, 2 * high)})
    gap = run(made.data, out, x) - run(model.data, out, x)
    assert np.abs(gap).max() < 0.1 + np.ptp(run(model.data, out, x))
    assert made.grids.keys() == {logits}
