# SPDX-License-Identifier: Apache-2.0
"""The operators that a tail may hold."""

from __future__ import annotations

from fedlearn.trainer.add import Add
from fedlearn.trainer.conv2d import Conv2D
from fedlearn.trainer.depthwise_conv2d import DepthwiseConv2D
from fedlearn.trainer.fully_connected import FullyConnected
from fedlearn.trainer.layer import Layer
from fedlearn.trainer.mul import Mul
from fedlearn.trainer.reshape import Reshape

LAYERS: dict[str, type[Layer]] = {
    "ADD": Add,
    "CONV_2D": Conv2D,
    "DEPTHWISE_CONV_2D": DepthwiseConv2D,
    "FULLY_CONNECTED": FullyConnected,
    "MUL": Mul,
    "RESHAPE": Reshape,
}
