# SPDX-License-Identifier: Apache-2.0
"""Operators that move int8 values from one tensor to another and do not rescale them."""

from __future__ import annotations

from fedlearn.errors import ModelError
from fedlearn.trainer.layer import Layer

# The runtimes let the scales differ by float noise; beyond it errors in real units would be wrong.
_NOISE = 1e-5


def require_same_grid(layer: Layer) -> None:
    """Raise ModelError unless input and output have one scale and zero point."""
    first, second = layer.input, layer.output
    near = abs(first.scale - second.scale) <= _NOISE * second.scale
    if not near or first.zero_point != second.zero_point:
        raise ModelError(
            f"operator {layer.operator.index} ({layer.operator.name}): "
            "input and output differ in scale or zero point"
        )
