# SPDX-License-Identifier: Apache-2.0
"""The int8 trainer: SGD on the weights of a `.tflite`, with int8 activations and int8 errors."""
