# SPDX-License-Identifier: Apache-2.0
"""The part of the TFLite schema (version 3) that fedlearn reads: slot numbers and codes.

Numbers are those of `tensorflow/lite/schema/schema.fbs`, whose tables only ever grow at the end.
"""

from __future__ import annotations

from enum import IntEnum

FILE_IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3


class ModelSlot(IntEnum):
    """Fields of the root table."""

    VERSION = 0
    OPERATOR_CODES = 1
    SUBGRAPHS = 2
    BUFFERS = 4
    METADATA = 6
    SIGNATURES = 7


class OperatorCodeSlot(IntEnum):
    """Fields of an OperatorCode. Codes above 127 only stand in BUILTIN_CODE."""

    DEPRECATED_BUILTIN_CODE = 0
    CUSTOM_CODE = 1
    BUILTIN_CODE = 3


class SubGraphSlot(IntEnum):
    """Fields of a SubGraph."""

    TENSORS = 0
    INPUTS = 1
    OUTPUTS = 2
    OPERATORS = 3


class TensorSlot(IntEnum):
    """Fields of a Tensor."""

    SHAPE = 0
    TYPE = 1
    BUFFER = 2
    NAME = 3
    QUANTIZATION = 4


class QuantizationSlot(IntEnum):
    """Fields of QuantizationParameters."""

    SCALE = 2
    ZERO_POINT = 3
    QUANTIZED_DIMENSION = 6


class OperatorSlot(IntEnum):
    """Fields of an Operator."""

    OPCODE_INDEX = 0
    INPUTS = 1
    OUTPUTS = 2
    OPTIONS_TYPE = 3
    BUILTIN_OPTIONS = 4


class BufferSlot(IntEnum):
    """Fields of a Buffer; OFFSET and SIZE point behind the flatbuffer in files above 2 GiB."""

    DATA = 0
    OFFSET = 1
    SIZE = 2


class MetadataSlot(IntEnum):
    """Fields of a Metadata."""

    BUFFER = 1


class SignatureSlot(IntEnum):
    """Fields of a SignatureDef, and TENSOR_INDEX of the TensorMaps in its vectors."""

    INPUTS = 0
    OUTPUTS = 1
    TENSOR_INDEX = 1


class Padding(IntEnum):
    """How a window treats the border."""

    SAME = 0
    VALID = 1


class Activation(IntEnum):
    """ActivationFunctionType: what is fused behind an operator."""

    NONE = 0
    RELU = 1
    RELU_N1_TO_1 = 2
    RELU6 = 3
    TANH = 4
    SIGN_BIT = 5


TENSOR_TYPES = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 5: "string", 6: "bool",
    7: "int16", 8: "complex64", 9: "int8", 10: "float64", 11: "complex128", 12: "uint64",
    13: "resource", 14: "variant", 15: "uint32", 16: "uint16", 17: "int4", 18: "bfloat16",
}  # fmt: skip

# Bits of a value, of the types that a model for training may hold.
ITEM_BITS = {
    "float32": 32, "float16": 16, "int32": 32, "uint8": 8, "int64": 64, "bool": 8, "int16": 16,
    "int8": 8, "uint32": 32, "uint16": 16, "int4": 4,
}  # fmt: skip

# Names of the operators a quantised model is likely to hold; any other shows as BUILTIN_<code>.
OPERATOR_NAMES = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D",
    5: "DEPTH_TO_SPACE", 6: "DEQUANTIZE", 7: "EMBEDDING_LOOKUP", 9: "FULLY_CONNECTED",
    11: "L2_NORMALIZATION", 12: "L2_POOL_2D", 13: "LOCAL_RESPONSE_NORMALIZATION", 14: "LOGISTIC",
    16: "LSTM", 17: "MAX_POOL_2D", 18: "MUL", 19: "RELU", 20: "RELU_N1_TO_1", 21: "RELU6",
    22: "RESHAPE", 23: "RESIZE_BILINEAR", 24: "RNN", 25: "SOFTMAX", 26: "SPACE_TO_DEPTH",
    27: "SVDF", 28: "TANH", 32: "CUSTOM", 34: "PAD", 35: "UNIDIRECTIONAL_SEQUENCE_RNN",
    36: "GATHER", 37: "BATCH_TO_SPACE_ND", 38: "SPACE_TO_BATCH_ND", 39: "TRANSPOSE", 40: "MEAN",
    41: "SUB", 42: "DIV", 43: "SQUEEZE", 44: "UNIDIRECTIONAL_SEQUENCE_LSTM", 45: "STRIDED_SLICE",
    47: "EXP", 48: "TOPK_V2", 49: "SPLIT", 50: "LOG_SOFTMAX", 53: "CAST", 54: "PRELU",
    55: "MAXIMUM", 56: "ARG_MAX", 57: "MINIMUM", 58: "LESS", 59: "NEG", 60: "PADV2",
    61: "GREATER", 65: "SLICE", 67: "TRANSPOSE_CONV", 70: "EXPAND_DIMS", 71: "EQUAL",
    72: "NOT_EQUAL", 74: "SUM", 75: "SQRT", 76: "RSQRT", 77: "SHAPE", 78: "POW", 79: "ARG_MIN",
    82: "REDUCE_MAX", 83: "PACK", 88: "UNPACK", 89: "REDUCE_MIN", 92: "SQUARE",
    97: "RESIZE_NEAREST_NEIGHBOR", 111: "ELU", 152: "RELU_0_TO_1",
    98: "LEAKY_RELU", 99: "SQUARED_DIFFERENCE", 100: "MIRROR_PAD", 101: "ABS", 102: "SPLIT_V",
    105: "REVERSE_V2", 114: "QUANTIZE", 117: "HARD_SWISH", 118: "IF", 119: "WHILE",
    123: "SELECT_V2", 126: "BATCH_MATMUL", 130: "BROADCAST_TO", 132: "CONV_3D", 150: "GELU",
}  # fmt: skip
