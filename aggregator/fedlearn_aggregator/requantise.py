# SPDX-License-Identifier: Apache-2.0
"""From master weights to the next int8 `.tflite`, and back at the start of a task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedlearn.errors import ModelError
from fedlearn.model import Model
from fedlearn.wire.messages import TrainableTensor
from fedlearn_aggregator.optimizers import BIAS_EDGE, WEIGHT_EDGE, ServerState


def first_state(model: Model, tensors: Sequence[TrainableTensor]) -> ServerState:
    """Master weights that equal the starting model."""
    return ServerState({t.index: model.array(t.index).astype(np.float64) for t in tensors})


def edges(tensors: Sequence[TrainableTensor]) -> dict[int, float]:
    """Largest magnitude of a master weight by tensor, in grid steps."""
    return {t.index: WEIGHT_EDGE if t.dtype == "int8" else BIAS_EDGE for t in tensors}


def grid_scales(
    model: Model, tensors: Sequence[TrainableTensor]
) -> dict[int, npt.NDArray[np.float64]]:
    """Real value of one grid step by tensor, broadcastable to the tensor's shape.

    Raises ModelError when the file does not say it: TFLite can do without a bias's scale.
    """
    scales = {}
    for tensor in tensors:
        entry = model.tensors[tensor.index]
        shape = [1] * len(tensor.shape)
        if entry.scales.size > 1:
            shape[entry.axis] = entry.scales.size
        scale = entry.scales.astype(np.float64)
        try:
            scales[tensor.index] = np.broadcast_to(scale.reshape(shape), tensor.shape)
        except (ValueError, IndexError) as error:
            raise ModelError(
                f"tensor {tensor.index} has no scale that fits its shape",
                hint="fedadam, krum, multi-krum and bounds of norms need it: choose others",
            ) from error
    return scales


def next_model(model: Model, tensors: Sequence[TrainableTensor], state: ServerState) -> bytes:
    """`model` with every trainable tensor rounded from its master weights, half to even.

    Weights stay within +-127: the int8 of TFLite is symmetric for weights, -128 is not used.
    """
    arrays: dict[int, npt.NDArray[np.int8] | npt.NDArray[np.int32]] = {}
    for tensor in tensors:
        rounded = np.rint(state.master[tensor.index])
        if tensor.dtype == "int8":
            arrays[tensor.index] = np.clip(rounded, -127, 127).astype(np.int8)
        else:
            arrays[tensor.index] = rounded.astype(np.int32)
    return model.patched(arrays)
