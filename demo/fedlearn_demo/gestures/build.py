# SPDX-License-Identifier: Apache-2.0
"""Rebuild `gestures.tflite`: `python -m fedlearn_demo.gestures.build`.

Needs the extra `convert` (TensorFlow); nothing else of the project does. The net has its random
initial weights. It is calibrated on noise of about the strength of movements, so nobody's data are
in it; its scales follow the training.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn_demo.gestures.watch import CHANNELS, CLASSES, STEP, WINDOW

SEED = 20261128


def make_net() -> Any:
    """Two 1-D convolutions and two dense layers, as TFLite knows them: 2-D ones of width 1."""
    import tensorflow as tf  # noqa: PLC0415 - an extra of this module alone

    tf.keras.utils.set_random_seed(SEED)
    layers = tf.keras.layers
    # The converter leaves out a bias of zeros, and what is not there cannot be trained.
    some = tf.keras.initializers.RandomUniform(-0.01, 0.01, seed=SEED)
    return tf.keras.Sequential(
        [
            layers.Input((WINDOW, 1, len(CHANNELS))),
            layers.Conv2D(
                16, (9, 1), (2, 1), padding="same", activation="relu", bias_initializer=some
            ),
            layers.Conv2D(
                32, (9, 1), (2, 1), padding="same", activation="relu", bias_initializer=some
            ),
            layers.AveragePooling2D((5, 1)),
            layers.Flatten(),
            layers.Dense(64, activation="relu", bias_initializer=some),
            layers.Dense(len(CLASSES), activation="softmax", bias_initializer=some),
        ],
        name="gestures",
    )


def noise(count: int) -> NDArray[np.float32]:
    """Smooth noise (count, WINDOW, 1, channels) with the range that the input's step gives it."""
    rng = np.random.Generator(np.random.PCG64(SEED))
    raw = rng.standard_normal((count, WINDOW + 16, 1, len(CHANNELS)))
    smooth = sum(raw[:, lag : lag + WINDOW] for lag in range(16)) / 4
    strong = smooth * rng.uniform(0.3, 2.0, (count, 1, 1, len(CHANNELS)))
    strong[:2] = 0
    strong[0, 0], strong[1, 0] = -128 * STEP, 127 * STEP
    return np.clip(strong, -128 * STEP, 127 * STEP).astype(np.float32)


def convert(net: Any, samples: NDArray[np.float32]) -> bytes:
    """Convert to a fully int8 `.tflite` of batch 1; dense weights get one scale a tensor."""
    import tensorflow as tf  # noqa: PLC0415 - an extra of this module alone

    def representative() -> Iterator[list[NDArray[np.float32]]]:
        for sample in samples:
            yield [sample[np.newaxis]]

    entry = tf.keras.Input(batch_shape=(1, *samples.shape[1:]), name="window")
    converter = tf.lite.TFLiteConverter.from_keras_model(
        tf.keras.Model(entry, net(entry), name="batch1")
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.int8
    converter.inference_output_type = tf.int8
    converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    return bytes(converter.convert())


def main() -> None:
    """Rebuild the file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, metavar="DIR")
    out: Path = parser.parse_args().out
    (out / "gestures.tflite").write_bytes(convert(make_net(), noise(500)))


if __name__ == "__main__":
    main()
