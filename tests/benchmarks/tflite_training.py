# SPDX-License-Identifier: Apache-2.0
"""Rebuild the `.tflite` files that train themselves: `python -m tests.benchmarks.tflite_training`.

TFLite's on-device training runs a training step as a signature of the model file. What TensorFlow
derives as a gradient needs its Flex kernels, which neither TFLite runtime has; so each backward
pass is written out here, in operators that TFLite has built in. The weights are resource variables
that start from those of the int8 models. Needs the extra `convert` (TensorFlow); the benchmark and
its tests do not.

Signatures: `train_<case>(x, y, rate) -> loss` for a batch, with features x float32 (BATCH, ...),
class numbers y int32 (BATCH,) and a learning rate; `weights() -> w<tensor>` gives all variables, in
the shapes of the int8 file.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tensorflow as tf

from fedlearn.model import Model
from fedlearn.model.schema import Activation
from tests.benchmarks.case import BATCH, CASES, Case
from tests.benchmarks.float_net import Operation, pads, read, real


class Step:
    """One SGD step of one case, operator by operator."""

    def __init__(self, case: Case, model: Model, variables: dict[int, tf.Variable]) -> None:
        self._net = read(model, case.layers)
        self._variables = variables
        self._shapes = {tensor.index: tensor.shape[1:] for tensor in model.tensors}
        self.name = f"train_{case.name}"
        self.signature = [
            tf.TensorSpec((BATCH, *self._shapes[self._net.entry]), tf.float32, "x"),
            tf.TensorSpec((BATCH,), tf.int32, "y"),
            tf.TensorSpec((), tf.float32, "rate"),
        ]

    def __call__(self, x: tf.Tensor, y: tf.Tensor, rate: tf.Tensor) -> dict[str, tf.Tensor]:
        """Forward, backward, update; the loss is that before the step."""
        weights = {
            number: self._variables[number].read_value()
            for each in self._net.tail
            if each.weight >= 0
            for number in (each.weight, each.bias)
        }
        values = {self._net.entry: x}
        for each in self._net.tail:
            values[each.output] = _FORWARD[each.name](each, weights, values)
        logits = values[self._net.tail[-1].output]
        wanted = tf.one_hot(y, logits.shape[1])
        loss = -tf.reduce_sum(tf.nn.log_softmax(logits) * wanted) / BATCH
        # The rate goes into the errors: everything behind them is linear.
        errors = {self._net.tail[-1].output: (tf.nn.softmax(logits) - wanted) * (rate / BATCH)}
        for each in reversed(self._net.tail):
            error = errors.pop(each.output) * _passes(each, values[each.output])
            if each.weight >= 0:
                rows = tf.reshape(error, [-1, error.shape[-1]])
                bias = weights[each.bias] - tf.reduce_sum(rows, 0)
                weight = weights[each.weight] - _GRADIENT[each.name](each, weights, values, error)
                self._variables[each.bias].assign(bias)
                self._variables[each.weight].assign(weight)
            for number in each.inputs:
                if number != self._net.entry:
                    below = _TO_INPUT[each.name](each, weights, values[number].shape, error)
                    errors[number] = errors[number] + below if number in errors else below
        return {"loss": loss}


Tensors = dict[int, tf.Tensor]


def _activated(operation: Operation, y: tf.Tensor) -> tf.Tensor:
    if operation.activation is Activation.RELU:
        return tf.nn.relu(y)
    return tf.nn.relu6(y) if operation.activation is Activation.RELU6 else y


def _passes(operation: Operation, y: tf.Tensor) -> tf.Tensor | float:
    """1 where the activation lets errors through, 0 elsewhere."""
    if operation.activation is Activation.NONE:
        return 1.0
    open_ = y > 0.0
    if operation.activation is Activation.RELU6:
        open_ = tf.logical_and(open_, y < 6.0)
    return tf.cast(open_, tf.float32)


def _padding(operation: Operation) -> str:
    return "SAME" if operation.same else "VALID"


def _padded(operation: Operation, x: tf.Tensor, kernel: tuple[int, int]) -> tf.Tensor:
    """With the zeros that the window sees."""
    if not operation.same:
        return x
    sizes = zip(x.shape[1:3], kernel, strict=True)
    around = [pads(size, taps, operation.stride) for size, taps in sizes]
    return tf.pad(x, [(0, 0), *around, (0, 0)])


# Dense layers: weights (C, K).


def _dense(operation: Operation, weights: Tensors, values: Tensors) -> tf.Tensor:
    x = values[operation.inputs[0]]
    y = tf.matmul(x, weights[operation.weight], transpose_b=True)
    return _activated(operation, y + weights[operation.bias])


def _dense_gradient(
    operation: Operation, weights: Tensors, values: Tensors, error: tf.Tensor
) -> tf.Tensor:
    return tf.matmul(error, values[operation.inputs[0]], transpose_a=True)


def _dense_to_input(
    operation: Operation, weights: Tensors, shape: Any, error: tf.Tensor
) -> tf.Tensor:
    return tf.matmul(error, weights[operation.weight])


# Convolutions: weights (C, KH, KW, C_in).


def _convolution(operation: Operation, weights: Tensors, values: Tensors) -> tf.Tensor:
    kernel = tf.transpose(weights[operation.weight], [1, 2, 3, 0])
    x = values[operation.inputs[0]]
    y = tf.nn.conv2d(x, kernel, operation.stride, _padding(operation))
    return _activated(operation, y + weights[operation.bias])


def _convolution_gradient(
    operation: Operation, weights: Tensors, values: Tensors, error: tf.Tensor
) -> tf.Tensor:
    """Itself a convolution: input channels are the batch, the batch is the channels.

    The errors are the kernel, dilated by the stride.
    """
    x = values[operation.inputs[0]]
    channels, *kernel, depth = weights[operation.weight].shape
    if kernel == [1, 1]:
        rows = tf.reshape(error, [-1, channels])
        product = tf.matmul(rows, tf.reshape(x, [-1, depth]), transpose_a=True)
        return tf.reshape(product, [channels, 1, 1, depth])
    planes = tf.transpose(_padded(operation, x, tuple(kernel)), [3, 1, 2, 0])
    taps = tf.transpose(error, [1, 2, 0, 3])
    made = tf.nn.conv2d(planes, taps, 1, "VALID", dilations=operation.stride)
    return tf.transpose(made[:, : kernel[0], : kernel[1]], [3, 1, 2, 0])


def _convolution_to_input(
    operation: Operation, weights: Tensors, shape: Any, error: tf.Tensor
) -> tf.Tensor:
    weight = weights[operation.weight]
    channels, *kernel, depth = weight.shape
    if kernel == [1, 1]:
        rows = tf.matmul(tf.reshape(error, [-1, channels]), tf.reshape(weight, [channels, depth]))
        return tf.reshape(rows, shape)
    taps = tf.transpose(weight, [1, 2, 3, 0])
    return tf.nn.conv2d_transpose(error, taps, shape, operation.stride, _padding(operation))


# Depthwise convolutions: weights (1, KH, KW, C).


def _depthwise(operation: Operation, weights: Tensors, values: Tensors) -> tf.Tensor:
    y = _each_channel(values[operation.inputs[0]], weights[operation.weight], operation)
    return _activated(operation, y + weights[operation.bias])


def _each_channel(x: tf.Tensor, weight: tf.Tensor, operation: Operation) -> tf.Tensor:
    stride = operation.stride
    taps = tf.reshape(weight, [*weight.shape[1:], 1])
    return tf.nn.depthwise_conv2d(x, taps, [1, stride, stride, 1], _padding(operation))


def _depthwise_gradient(
    operation: Operation, weights: Tensors, values: Tensors, error: tf.Tensor
) -> tf.Tensor:
    """Tap by tap; as a depthwise convolution of all samples' channels it is a tenth slower."""
    _, *kernel, channels = weights[operation.weight].shape
    _require_unit_stride(operation)
    x = _padded(operation, values[operation.inputs[0]], tuple(kernel))
    height, width = error.shape[1:3]
    taps = [
        tf.reduce_sum(x[:, row : row + height, column : column + width] * error, [0, 1, 2])
        for row in range(kernel[0])
        for column in range(kernel[1])
    ]
    return tf.reshape(tf.concat(taps, 0), [1, *kernel, channels])


def _depthwise_to_input(
    operation: Operation, weights: Tensors, shape: Any, error: tf.Tensor
) -> tf.Tensor:
    """The same convolution with the kernel turned by half a circle."""
    _require_unit_stride(operation)
    weight = weights[operation.weight]
    # As a list of taps: tflite-runtime 2.14 reverses the first axis alone of several.
    turned = tf.reverse(tf.reshape(weight, [-1, weight.shape[-1]]), [0])
    return _each_channel(error, tf.reshape(turned, weight.shape), operation)


def _require_unit_stride(operation: Operation) -> None:
    if operation.stride != 1 or not operation.same:
        raise NotImplementedError("depthwise convolutions are trained with stride 1 and SAME")


# Operators without weights.


def _add(operation: Operation, weights: Tensors, values: Tensors) -> tf.Tensor:
    one, other = operation.inputs
    return values[one] + values[other]


def _mean(operation: Operation, weights: Tensors, values: Tensors) -> tf.Tensor:
    return tf.reduce_mean(values[operation.inputs[0]], [1, 2])


def _mean_to_input(
    operation: Operation, weights: Tensors, shape: Any, error: tf.Tensor
) -> tf.Tensor:
    share = tf.reshape(error / (shape[1] * shape[2]), [BATCH, 1, 1, shape[3]])
    return tf.broadcast_to(share, shape)


def _reshape(operation: Operation, weights: Tensors, values: Tensors) -> tf.Tensor:
    return tf.reshape(values[operation.inputs[0]], [BATCH, -1])


def _reshape_to_input(
    operation: Operation, weights: Tensors, shape: Any, error: tf.Tensor
) -> tf.Tensor:
    return tf.reshape(error, shape)


_FORWARD: dict[str, Callable[[Operation, Tensors, Tensors], tf.Tensor]] = {
    "FULLY_CONNECTED": _dense,
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "ADD": _add,
    "MEAN": _mean,
    "RESHAPE": _reshape,
}
_GRADIENT: dict[str, Callable[[Operation, Tensors, Tensors, tf.Tensor], tf.Tensor]] = {
    "FULLY_CONNECTED": _dense_gradient,
    "CONV_2D": _convolution_gradient,
    "DEPTHWISE_CONV_2D": _depthwise_gradient,
}
_TO_INPUT: dict[str, Callable[[Operation, Tensors, Any, tf.Tensor], tf.Tensor]] = {
    "FULLY_CONNECTED": _dense_to_input,
    "CONV_2D": _convolution_to_input,
    "DEPTHWISE_CONV_2D": _depthwise_to_input,
    "ADD": lambda operation, weights, shape, error: error,
    "MEAN": _mean_to_input,
    "RESHAPE": _reshape_to_input,
}


def build(cases: Iterable[Case]) -> bytes:
    """One file for cases of the same model, which share the weights."""
    cases = list(cases)
    model = Model.parse(cases[0].model.read_bytes())
    longest = read(model, max(case.layers for case in cases))
    variables = {
        number: tf.Variable(real(model, number), name=f"w{number}")
        for each in longest.tail
        if each.weight >= 0
        for number in (each.weight, each.bias)
    }
    module = tf.Module()
    module.all = list(variables.values())  # TensorFlow saves what hangs on the module
    steps = [Step(case, model, variables) for case in cases]
    signatures = {step.name: tf.function(step.__call__, step.signature) for step in steps}
    signatures["weights"] = tf.function(
        lambda: {f"w{number}": variable.read_value() for number, variable in variables.items()},
        [],
    )
    concrete = {name: each.get_concrete_function() for name, each in signatures.items()}
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=concrete)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, list(concrete))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.experimental_enable_resource_variables = True
        return bytes(converter.convert())


def main() -> None:
    """Rebuild both files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, metavar="DIR")
    out: Path = parser.parse_args().out
    for name in sorted({case.steps.name for case in CASES.values()}):
        data = build(case for case in CASES.values() if case.steps.name == name)
        (out / name).write_bytes(data)
        print(f"{name}: {len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
