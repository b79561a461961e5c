# SPDX-License-Identifier: Apache-2.0
"""Rebuild the models of this folder: `python -m tests.models.build [NAME ...]`.

Needs the extra `convert` (TensorFlow); the tests do not. With `--reference` it also trains each net
on all of its training data and prints how good it gets in float32, for `README.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fedlearn_demo.digits.build import KNOWN_CLASSES, SEED, train_keras
from tests import models
from tests.models import keywords, nets, vibration

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]

BATCH = 32
# As many samples as show the converter the whole range of every activation.
CALIBRATION = 500


def seed_everything() -> None:
    """Called before a net is made, so that each comes out the same whatever was built before."""
    tf.keras.backend.clear_session()  # else the layers' numbers, and the file, tell what was
    tf.keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()


def real(x: NDArray[np.uint8]) -> Floats:
    """Raw bytes as the real numbers they stand for."""
    return x.astype(np.float32) / np.float32(255)


def fit(net: Any, x: Floats, y: Any, *, loss: str, epochs: int, rate: float = 1e-3) -> None:
    """Train with Adam."""
    net.compile(optimizer=tf.keras.optimizers.Adam(rate), loss=loss)
    net.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)


def convert(net: Any, samples: Floats, *, int8_edges: bool = True) -> bytes:
    """Convert to a fully int8 `.tflite` of batch 1, calibrated on `samples`.

    Dense weights get one scale a tensor: TFLite before 2.17 cannot run per-channel ones.
    """

    def representative() -> Iterator[list[Floats]]:
        for sample in samples:
            yield [sample[np.newaxis]]

    entry = tf.keras.Input(batch_shape=(1, *samples.shape[1:]), name="input")
    converter = tf.lite.TFLiteConverter.from_keras_model(
        tf.keras.Model(entry, net(entry, training=False), name="batch1")
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if int8_edges:
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
    converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    with contextlib.redirect_stdout(io.StringIO()):  # a page about the function's signature
        return bytes(converter.convert())


def accuracy(net: Any, x: Floats, y: Labels) -> str:
    """How often the net's likeliest class is right."""
    hits = net.predict(x, verbose=0).argmax(axis=1) == y
    return f"{hits.mean():.1%}"


def classifier(
    make: Callable[[], Any],
    train: tuple[NDArray[np.uint8], Labels],
    test: tuple[NDArray[np.uint8], Labels],
    *,
    known: int,
    epochs: int,
    reference: bool,
) -> bytes:
    """Train on the first `known` classes alone, calibrate on all: there is room to learn them."""
    x, y = real(train[0]), train[1]
    if reference:
        seed_everything()
        net = make()
        fit(net, x, y, loss="sparse_categorical_crossentropy", epochs=epochs)
        print(f"  float32, trained on all classes: {accuracy(net, real(test[0]), test[1])}")
    seed_everything()
    net = make()
    seen = y < known
    fit(net, x[seen], y[seen], loss="sparse_categorical_crossentropy", epochs=epochs)
    print(f"  float32: {accuracy(net, real(test[0]), test[1])}, {net.count_params()} parameters")
    return convert(net, x[:CALIBRATION])


def build_mobilenet(reference: bool) -> bytes:
    """MobileNetV2-style, has seen the digits 0 to 4."""
    return classifier(
        nets.mobilenet,
        models.load_train(),
        models.load_test(),
        known=KNOWN_CLASSES,
        epochs=8,
        reference=reference,
    )


def build_keywords(reference: bool) -> bytes:
    """DS-CNN, has heard half of the keywords."""
    return classifier(
        lambda: nets.keywords(keywords.CLASSES, keywords.FRAMES, keywords.BANDS),
        models.load_keywords_train(),
        models.load_keywords_test(),
        known=keywords.CLASSES // 2,
        epochs=12,
        reference=reference,
    )


def build_untrained(reference: bool) -> bytes:
    """The demo's net with its random initial weights, calibrated as it is then."""
    seed_everything()
    return convert(nets.digits(), real(models.load_train()[0])[:300])


def build_autoencoder(reference: bool) -> bytes:
    """Dense autoencoder that has begun to learn one machine's sound vibration."""
    x, test = models.load_vibration_train(), models.load_vibration_test()
    for samples, epochs in ((x, 60), (x[:500], 3))[0 if reference else 1 :]:
        seed_everything()
        net = nets.autoencoder(vibration.WINDOW)
        fit(net, samples, samples, loss="mse", epochs=epochs)
        error = np.square(net.predict(test, verbose=0) - test).mean()
        print(f"  float32, {epochs} epochs of {len(samples)}: mean square error {error:.4f} g^2")
    # Twice as loud, too: the inner activations of a net that has learnt more are larger. And upside
    # down, so that the input gets its whole range, which is the output's as well.
    lowest, highest = -128 * vibration.STEP_G, 127 * vibration.STEP_G
    some = x[:CALIBRATION]
    loud = np.concatenate([some, 2 * some, -2 * some]).clip(lowest, highest)
    return convert(nets.with_range(net, lowest, highest), loud)


def build_multilabel(reference: bool) -> bytes:
    """Two branches and a gate, has had a short look at a few digits."""
    x, y = real(models.load_train()[0]), models.label_digits(models.load_train()[1])
    test, wanted = real(models.load_test()[0]), models.label_digits(models.load_test()[1])
    for count, epochs in ((len(x), 12), (1000, 6))[0 if reference else 1 :]:
        seed_everything()
        net = nets.multilabel(len(models.LABELS))
        fit(net, x[:count], y[:count], loss="binary_crossentropy", epochs=epochs)
        hits = (net.predict(test, verbose=0) > 0.5) == wanted
        by_label = ", ".join(f"{share:.1%}" for share in hits.mean(axis=0))
        print(
            f"  float32, {epochs} epochs of {count}: {hits.mean():.1%} of all labels ({by_label})"
        )
    print(f"  {net.count_params()} parameters")
    return convert(net, x[:CALIBRATION])


def build_float_edges(reference: bool) -> bytes:
    """The demo's trained net as the converter makes it by default: float32 in and out."""
    seed_everything()
    x, y = models.load_train()
    known = y < KNOWN_CLASSES
    return convert(train_keras(real(x[known]), y[known]), real(x), int8_edges=False)


RECIPES: dict[Path, Callable[[bool], bytes]] = {
    models.MOBILENET_PATH: build_mobilenet,
    models.UNTRAINED_PATH: build_untrained,
    models.KEYWORDS_PATH: build_keywords,
    models.AUTOENCODER_PATH: build_autoencoder,
    models.MULTILABEL_PATH: build_multilabel,
    models.FLOAT_EDGES_PATH: build_float_edges,
}


def main() -> None:
    """Rebuild the models named, or all."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    names = [path.stem for path in RECIPES]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, metavar="DIR")
    parser.add_argument("--reference", action="store_true", help="train on everything, too")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"there is no {', '.join(sorted(unknown))}: choose from {', '.join(names)}")
    for path, recipe in RECIPES.items():
        if arguments.names and path.stem not in arguments.names:
            continue
        print(path.name)
        data = recipe(arguments.reference)
        (arguments.out / path.name).write_bytes(data)
        print(f"  {len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
