# SPDX-License-Identifier: Apache-2.0
"""The operators that the trainer runs itself, in a tail or before it."""

from __future__ import annotations

from fedlearn.trainer.add import Add
from fedlearn.trainer.concatenation import Concatenation
from fedlearn.trainer.conv2d import Conv2D
from fedlearn.trainer.depthwise_conv2d import DepthwiseConv2D
from fedlearn.trainer.fully_connected import FullyConnected
from fedlearn.trainer.layer import Layer
from fedlearn.trainer.logistic import Logistic
from fedlearn.trainer.mean import Mean
from fedlearn.trainer.mul import Mul
from fedlearn.trainer.pad import Pad
from fedlearn.trainer.pooling import AveragePool2D, MaxPool2D
from fedlearn.trainer.quantize import Quantize
from fedlearn.trainer.relu import Relu
from fedlearn.trainer.reshape import Reshape
from fedlearn.trainer.softmax import Softmax

LAYERS: dict[str, type[Layer]] = {
    "ADD": Add,
    "AVERAGE_POOL_2D": AveragePool2D,
    "CONCATENATION": Concatenation,
    "CONV_2D": Conv2D,
    "DEPTHWISE_CONV_2D": DepthwiseConv2D,
    "EXPAND_DIMS": Reshape,
    "FULLY_CONNECTED": FullyConnected,
    "LOGISTIC": Logistic,
    "MAX_POOL_2D": MaxPool2D,
    "MEAN": Mean,
    "MUL": Mul,
    "PAD": Pad,
    "QUANTIZE": Quantize,
    "RELU": Relu,
    "RELU6": Relu,
    "RELU_N1_TO_1": Relu,
    "RESHAPE": Reshape,
    "SOFTMAX": Softmax,
    "SQUEEZE": Reshape,
}
