# SPDX-License-Identifier: Apache-2.0
"""The `.tflite` file as the model: read it, name what can be trained, patch it in place."""

from fedlearn.model.model import Model, Operator, Tensor
from fedlearn.model.tails import trainable_tensors

__all__ = ["Model", "Operator", "Tensor", "trainable_tensors"]
