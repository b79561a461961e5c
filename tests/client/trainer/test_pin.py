# SPDX-License-Identifier: Apache-2.0
"""One rounding on every machine, whatever the runtime's kernels have been found to do."""

from __future__ import annotations

import numpy as np

from fedlearn.model import Model
from fedlearn.trainer.tail import Tail
from fedlearn.trainer.tails import trainable_tensors
from fedlearn_demo.digits import MODEL_PATH
from tests import models

NETWORKS = (MODEL_PATH, models.MOBILENET_PATH, models.KEYWORDS_PATH, models.MULTILABEL_PATH)
SAMPLES = 8


def test_every_layer_rounds_as_pinned_whatever_was_chosen_before() -> None:
    kinds, differing = set(), 0
    for path in NETWORKS:
        model = Model.parse(path.read_bytes())
        tail = Tail(model, [each.index for each in trainable_tensors(model, "all")])
        for number, layer in enumerate(tail.layers):
            choices = layer.arithmetics()
            assert (layer.pinned in choices) if choices else layer.pinned is None
            rng = np.random.default_rng(number)
            x = [
                rng.integers(-128, 128, (SAMPLES, *tensor.shape[1:])).astype(np.float32)
                - np.float32(tensor.zero_point)
                for tensor in layer.inputs
            ]
            chosen, pinned = set(), set()
            for arithmetic in choices:
                layer.choose(arithmetic)
                chosen.add(layer.forward(*x).tobytes())
                layer.pin()
                pinned.add(layer.forward(*x).tobytes())
            assert len(pinned) <= 1, layer.operator
            kinds.add(layer.operator.name)
            differing += len(chosen) > 1
    assert kinds >= {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MEAN"}
    assert differing > 10, "control: unpinned, the roundings differ"
