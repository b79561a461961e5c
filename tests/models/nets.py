# SPDX-License-Identifier: Apache-2.0
"""The networks, in Keras. Only `tests.models.build` imports this: it needs TensorFlow."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from fedlearn_demo.digits.build import CLASSES, SIDE

layers = tf.keras.layers


def _normalised(x: Any) -> Any:
    """Batch normalisation and ReLU6, both folded into the layer before by the converter."""
    # Few batches are seen: the usual momentum of 0.99 would leave the statistics half learnt.
    return layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(x))


def _pointwise(x: Any, channels: int) -> Any:
    return layers.Conv2D(channels, 1, use_bias=False)(x)


def _inverted_residual(x: Any, *, expand: int, channels: int, stride: int) -> Any:
    """MobileNetV2's block (Sandler et al. 2018): wide inside, linear at its end."""
    inside = _normalised(_pointwise(x, expand))
    inside = layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False)(inside)
    inside = _pointwise(_normalised(inside), channels)
    inside = layers.BatchNormalization(momentum=0.9)(inside)
    fits = stride == 1 and x.shape[-1] == channels
    return layers.Add()([x, inside]) if fits else inside


def mobilenet() -> Any:
    """MobileNetV2 in small: five inverted residual blocks, three of them with their ADD."""
    image = layers.Input((SIDE, SIDE, 1))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(image)
    x = _normalised(x)
    x = _inverted_residual(x, expand=48, channels=16, stride=1)
    x = _inverted_residual(x, expand=64, channels=24, stride=2)
    x = _inverted_residual(x, expand=96, channels=24, stride=1)
    x = _inverted_residual(x, expand=96, channels=32, stride=2)
    x = _inverted_residual(x, expand=128, channels=32, stride=1)
    x = _normalised(_pointwise(x, 96))
    x = layers.GlobalAveragePooling2D()(x)
    return tf.keras.Model(image, layers.Dense(CLASSES, activation="softmax")(x), name="mobilenet")


def keywords(classes: int, frames: int, bands: int) -> Any:
    """DS-CNN (Zhang et al. 2017, "Hello Edge"): depthwise-separable blocks, average pooling."""
    spectrogram = layers.Input((frames, bands, 1))
    x = layers.Conv2D(32, (10, 4), strides=2, padding="same", use_bias=False)(spectrogram)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    for _ in range(4):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        x = _pointwise(x, 32)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Flatten()(layers.AveragePooling2D(x.shape[1:3])(x))
    x = layers.Dense(classes, activation="softmax")(x)
    return tf.keras.Model(spectrogram, x, name="keywords")


def autoencoder(window: int) -> Any:
    """Dense autoencoder through 8 numbers."""
    signal = layers.Input((window,))
    x = signal
    for width in (32, 8, 32):
        x = layers.Dense(width, activation="relu")(x)
    return tf.keras.Model(signal, layers.Dense(window)(x), name="autoencoder")


class _Range(tf.keras.layers.Layer):  # type: ignore[misc]  # TensorFlow has no types
    """Tells the converter a tensor's range, which it would else take from the calibration."""

    def __init__(self, lowest: float, highest: float) -> None:
        super().__init__()
        self._range = (lowest, highest)

    def call(self, x: Any) -> Any:
        return tf.quantization.fake_quant_with_min_max_args(x, *self._range)


def with_range(net: Any, lowest: float, highest: float) -> Any:
    """The net, to be converted with this range of its output."""
    entry = layers.Input(net.input_shape[1:])
    return tf.keras.Model(entry, _Range(lowest, highest)(net(entry)), name="ranged")


def multilabel(labels: int) -> Any:
    """Two branches, a squeeze-and-excitation gate (Hu et al. 2018), independent labels.

    Each has an operator that other nets lack: PAD, CONCATENATION, a RELU6 that nothing before it
    can take in, MAX_POOL_2D, MUL by a LOGISTIC.
    """
    image = layers.Input((SIDE, SIDE, 1))
    x = layers.ZeroPadding2D(1)(image)
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    near = layers.Conv2D(8, 1)(x)
    far = layers.Conv2D(8, 3, padding="same")(x)
    x = layers.ReLU(6.0)(layers.Concatenate()([near, far]))
    x = layers.MaxPooling2D(2)(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(4, 1, activation="relu")(gate)
    gate = layers.Conv2D(16, 1, activation="sigmoid")(gate)
    x = layers.Multiply()([x, gate])
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    x = layers.Flatten()(layers.MaxPooling2D(2)(x))
    x = layers.Dense(32, activation="relu")(x)
    return tf.keras.Model(image, layers.Dense(labels, activation="sigmoid")(x), name="multilabel")


def digits() -> Any:
    """The net of the digits demo."""
    return tf.keras.Sequential(
        [
            layers.Input((SIDE, SIDE, 1)),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="conv1"),
            layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="conv2"),
            layers.Flatten(name="flatten"),
            layers.Dense(64, activation="relu", name="dense1"),
            layers.Dense(CLASSES, activation="softmax", name="dense2"),
        ],
        name="digits",
    )
