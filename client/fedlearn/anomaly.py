# SPDX-License-Identifier: Apache-2.0
"""Anomalies: samples that an autoencoder, trained on normal ones, does not give back.

The score of a sample is the mean squared error of its reconstruction, in real units. What counts as
an anomaly is a score above a quantile of the scores of normal samples, which the autoencoder should
not have been trained on.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import DatasetError, ModelError
from fedlearn.evaluation import real_outputs, squared_errors
from fedlearn.model import Model

# One false alarm in two hundred normal samples.
QUANTILE = 0.995
# Fewer than this many normal samples lie above a quantile by chance alone.
_LEAST_BEYOND = 1.0


def require_autoencoder(model: Model, name: str) -> None:
    """Raise ModelError unless the model gives back as many values as it takes."""
    takes, gives = (prod(model.tensors[at].shape[1:]) for at in (model.entry, model.exit))
    if takes != gives:
        raise ModelError(
            f"{name} is no autoencoder: it takes {takes} values and gives {gives}",
            hint="scores are errors of reconstruction; `fedlearn model evaluate` judges others",
        )


def anomaly_scores(model: Model, inputs: NDArray[np.int8], threads: int = 1) -> NDArray[np.float64]:
    """Scores (N,) of samples (N, ...) by the real interpreter; higher is stranger."""
    return squared_errors(model, real_outputs(model, inputs, threads), inputs)


def anomaly_threshold(normal: NDArray[np.float64], quantile: float = QUANTILE) -> float:
    """The score that `quantile` (0..1) of normal samples' scores stay below.

    Raises DatasetError for fewer samples than tell such a quantile.
    """
    if len(normal) * (1 - quantile) < _LEAST_BEYOND:
        raise DatasetError(
            f"{len(normal)} normal samples cannot tell a threshold that {quantile:.2%} stay below",
            hint=f"give {round(_LEAST_BEYOND / (1 - quantile))} or more, or a lower quantile",
        )
    return float(np.quantile(normal, quantile))
