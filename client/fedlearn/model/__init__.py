# SPDX-License-Identifier: Apache-2.0
"""The `.tflite` file as the model: read it, and patch it in place."""

from fedlearn.model.model import Model, Operator, Tensor

__all__ = ["Model", "Operator", "Tensor"]
