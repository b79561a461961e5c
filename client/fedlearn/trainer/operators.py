# SPDX-License-Identifier: Apache-2.0
"""The operators that a tail may hold."""

from __future__ import annotations

from fedlearn.trainer.conv2d import Conv2D
from fedlearn.trainer.depthwise_conv2d import DepthwiseConv2D
from fedlearn.trainer.fully_connected import FullyConnected
from fedlearn.trainer.layer import Layer
from fedlearn.trainer.mean import Mean
from fedlearn.trainer.pad import Pad
from fedlearn.trainer.pooling import AveragePool2D, MaxPool2D
from fedlearn.trainer.reshape import Reshape

LAYERS: dict[str, type[Layer]] = {
    "AVERAGE_POOL_2D": AveragePool2D,
    "CONV_2D": Conv2D,
    "DEPTHWISE_CONV_2D": DepthwiseConv2D,
    "EXPAND_DIMS": Reshape,
    "FULLY_CONNECTED": FullyConnected,
    "MAX_POOL_2D": MaxPool2D,
    "MEAN": Mean,
    "PAD": Pad,
    "RESHAPE": Reshape,
    "SQUEEZE": Reshape,
}
