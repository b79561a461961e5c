# SPDX-License-Identifier: Apache-2.0
"""The `.tflite` file as the model: read it, and patch it in place."""

from fedlearn.model.graph import Operator, Tensor
from fedlearn.model.model import Model

__all__ = ["Model", "Operator", "Tensor"]
