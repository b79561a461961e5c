# SPDX-License-Identifier: Apache-2.0
"""Error tensors in int8.

A float backward pass depends on the BLAS, its threads and the machine. With errors quantised to
int8 by a power of two, every sum of the backward pass is a sum of integers, exact in any order.
The scale is chosen for each tensor and batch so that its largest error uses the int8 range.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import TrainerError

LARGEST = 127.0
# Smaller errors move nothing, and their scale's inverse would not fit a float32.
NEGLIGIBLE = 2.0**-100


def quantise(errors: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Round `errors` to integers within +-127 times a power of two.

    Returns the integers (float32, same shape) and the scale, so that errors ~ integers * scale.
    Both steps are exact or correctly rounded float32 operations: the same bits everywhere. Raises
    TrainerError when an error is no finite number.
    """
    # Not errors.max(), whose wrapper takes as long as the work for a batch of logits.
    flat = errors.reshape(-1)
    largest = float(max(np.maximum.reduce(flat), -np.minimum.reduce(flat))) if errors.size else 0.0
    if not math.isfinite(largest):
        raise TrainerError(
            "the errors grew beyond every number",
            hint="use a smaller learning rate, smaller labels or smaller weights of classes",
        )
    if largest < NEGLIGIBLE:
        return np.zeros_like(errors), 1.0
    _, exponent = math.frexp(largest / LARGEST)
    integers = errors * np.float32(math.ldexp(1.0, -exponent))
    return np.rint(integers, out=integers), math.ldexp(1.0, exponent)


def keep(errors: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Leave errors in float32, in the place of `quantise`: for comparison only.

    Their sums are rounded, so that the trained bits depend on the BLAS.
    """
    return errors, 1.0


# By the value of `TrainingPlan.errors`.
QUANTISERS = {"int8": quantise, "float32": keep}
