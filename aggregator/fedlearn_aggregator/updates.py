# SPDX-License-Identifier: Apache-2.0
"""Is this body an update of this round? All checks that need no state of the round."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedlearn.errors import ProtocolError
from fedlearn.model import Model
from fedlearn.wire import codec, delta
from fedlearn.wire.messages import TrainableTensor, Update
from fedlearn_aggregator.requantise import grid_scales
from fedlearn_aggregator.robust import Opener, norm
from fedlearn_aggregator.task import Task

# No loss is so large. Of two near the end of what a float holds there is no mean for the summary.
MAX_LOSS = 1e30
_INT32 = np.iinfo(np.int32)
# A weight of an int8 model. Devices clip to +-127, but a starting model may hold -128.
_INT8 = np.iinfo(np.int8)


@dataclass(frozen=True, slots=True)
class CheckedUpdate:
    """An update that may be added to the round's sum.

    `deltas` are int32 in the tensor's shape; `norm` is their l2 norm in real units, known where the
    task asks for it.
    """

    update: Update
    deltas: dict[int, npt.NDArray[np.int32]]
    norm: float | None
    body: bytes
    digest: bytes


def check(body: bytes, task: Task, number: int, model: Model, device: str) -> CheckedUpdate:
    """Decode an update for round `number` on `model`; ProtocolError says what is wrong with it."""
    update = codec.decode(Update, body, max_bytes=task.limits.update_bytes)
    if update.device != device:
        _refuse("the device in the body is not the one in the URL")
    if update.task != task.name:
        _refuse("the update is for another task")
    if update.round != number:
        _refuse(f"the update says round {update.round}, the URL round {number}")
    if update.model != model.digest:
        _refuse("the update was trained on another model", "train on the model of the order")
    if not 1 <= update.samples <= task.limits.samples:
        _refuse(f"{update.samples} samples are not within 1..{task.limits.samples}")
    losses = (update.metrics.loss_before, update.metrics.loss_after)
    if not all(abs(each) <= MAX_LOSS for each in losses):
        _refuse(f"a loss is beyond +-{MAX_LOSS:g}")
    got = [tensor.index for tensor in update.tensors]
    wanted = {tensor.index: tensor for tensor in task.tensors}
    if not got or len(got) != len(set(got)) or not set(got) <= set(wanted):
        _refuse("the update does not hold trainable tensors, each once at most")
    _check_ranges(update, model)
    deltas = {
        tensor.index: _decode(wanted[tensor.index], tensor.encoding, tensor.data, model)
        for tensor in update.tensors
    }
    size = None
    if task.aggregation.in_real_units:
        size = norm(deltas, grid_scales(model, task.tensors))
    if size is not None and 0 < task.aggregation.max_norm < size:
        _refuse(f"the update's norm of {size:.6g} is above {task.aggregation.max_norm:g}")
    return CheckedUpdate(update, deltas, size, body, hashlib.sha256(body).digest())


def opener(body: bytes, task: Task, model: Model) -> Opener:
    """Unpack the deltas of an update that was checked before, one at a time."""
    update = codec.decode(Update, body, max_bytes=task.limits.update_bytes)
    packed = {tensor.index: tensor for tensor in update.tensors}
    wanted = {tensor.index: tensor for tensor in task.tensors}

    def unpack(index: int) -> npt.NDArray[np.int32] | None:
        tensor = packed.get(index)
        if tensor is None:
            return None
        return _decode(wanted[index], tensor.encoding, tensor.data, model)

    return unpack


def _check_ranges(update: Update, model: Model) -> None:
    if len(update.ranges) > len(model.tensors):
        _refuse(f"{len(update.ranges)} ranges are more than the model has tensors")
    if len({each.index for each in update.ranges}) != len(update.ranges):
        _refuse("the update holds two ranges of one tensor")
    for each in update.ranges:
        if each.index >= len(model.tensors):
            _refuse(f"the update holds a range of tensor {each.index}, which the model lacks")
        if each.low > each.high:
            _refuse(f"the range of tensor {each.index} ends before it begins")


def _decode(
    tensor: TrainableTensor, encoding: int, data: bytes, model: Model
) -> npt.NDArray[np.int32]:
    dtype: Literal["int8", "int32"] = "int8" if tensor.dtype == "int8" else "int32"
    size = math.prod(tensor.shape)
    values = delta.decode_delta(encoding, data, size, dtype=dtype).reshape(tensor.shape)
    # What the device trained was a model of this very format; nothing else can be an update.
    limits = _INT8 if tensor.dtype == "int8" else _INT32
    wide = np.int32 if tensor.dtype == "int8" else np.int64
    trained = np.add(model.array(tensor.index), values, dtype=wide)
    if size and not (limits.min <= trained.min() and trained.max() <= limits.max):
        _refuse(f"the delta of tensor {tensor.index} leaves {tensor.dtype}")
    return values


def _refuse(error: str, hint: str = "") -> None:
    raise ProtocolError(error, status=422, hint=hint)
