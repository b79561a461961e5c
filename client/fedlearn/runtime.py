# SPDX-License-Identifier: Apache-2.0
"""The TFLite runtime of this machine: tflite-runtime or its successor ai-edge-litert.

Interpreters are opened without delegates, which take memory; `delegates=True` opens one as an
application would. Runtimes, delegates and machines differ in how they round, see
`trainer.requantisation`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import FedlearnError, ModelError
from fedlearn.text import clean

# Of the runtime's own words, which name files of its source and tensors of the model.
_MOST_REASON = 300

# Preferred first. The successor goes before tflite-runtime, whose last wheels are for Python 3.11.
_RUNTIMES = ("ai_edge_litert", "tflite_runtime")


@cache
def _interpreter_module() -> ModuleType:
    for name in _RUNTIMES:
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(f"{name}.interpreter")
    raise FedlearnError(
        "no TFLite runtime is installed",
        hint="install tflite-runtime (Python 3.11) or ai-edge-litert (3.12 and newer)",
    )


def runtime_name() -> str:
    """Name and version of the runtime, such as "tflite-runtime 2.14.0"."""
    from importlib.metadata import version  # noqa: PLC0415  (1 MB that only messages need)

    distribution = _interpreter_module().__name__.split(".", maxsplit=1)[0].replace("_", "-")
    return f"{distribution} {version(distribution)}"


def is_litert() -> bool:
    """Whether the runtime is ai-edge-litert."""
    return _interpreter_module().__name__.startswith("ai_edge_litert")


def has_vectors() -> bool:
    """Whether the runtime's kernels that are written for Arm's NEON are built into it.

    They are on Arm; ai-edge-litert has them on x86-64, too, by way of SSE.
    """
    return is_litert() or os.uname().machine.startswith(("aarch64", "arm"))


class Session:
    """An interpreter of one model with one int8 input, such as a file or what `cut` makes of it."""

    def __init__(self, model: bytes, *, threads: int = 1, delegates: bool = False) -> None:
        """Open `model`; raises ModelError when the runtime cannot."""
        module = _interpreter_module()
        resolver = module.OpResolverType
        kind = resolver.AUTO if delegates else resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            self._interpreter: Any = module.Interpreter(
                model_content=model, num_threads=threads, experimental_op_resolver_type=kind
            )
            # As the file has them; the kernels make their own when they are allocated.
            exits = self._interpreter.get_output_details()
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise _refused(error) from error
        (entry,) = self._interpreter.get_input_details()
        self._shapes = [tuple(each["shape"]) for each in exits]
        self._input: int = entry["index"]
        self._outputs: list[int] = [each["index"] for each in exits]
        self._batch = int(entry["shape"][0])
        if any(len(each["shape"]) == 0 or each["shape"][0] != self._batch for each in exits):
            raise ModelError("the samples of a batch are mixed before the layers to train")

    def run(self, inputs: NDArray[np.int8]) -> NDArray[np.int8]:
        """Run samples of shape (N, ...) through a model of one output; the result is (N, ...)."""
        (result,) = self.run_all(inputs)
        return result

    def run_all(self, inputs: NDArray[np.int8]) -> tuple[NDArray[np.int8], ...]:
        """Run samples of shape (N, ...) through the model; each output has shape (N, ...).

        A model of batch b gets b samples a call, the last call padded with its first sample.
        """
        results: list[NDArray[np.int8]] = []
        for start in range(0, len(inputs), self._batch):
            chunk = inputs[start : start + self._batch]
            missing = self._batch - len(chunk)
            if missing:
                chunk = np.concatenate([chunk, np.repeat(chunk[:1], missing, axis=0)])
            try:
                self._interpreter.set_tensor(self._input, chunk)
                self._interpreter.invoke()
            except (ValueError, RuntimeError) as error:
                raise _refused(error) from error
            for at, number in enumerate(self._outputs):
                output = self._interpreter.get_tensor(number)
                if output.shape != self._shapes[at]:
                    raise ModelError(
                        f"the TFLite runtime makes {output.shape} of tensor {number}, the file has "
                        f"{self._shapes[at]}"
                    )
                if not start:
                    results.append(np.empty((len(inputs), *output.shape[1:]), output.dtype))
                results[at][start : start + self._batch] = output[: self._batch - missing]
        return tuple(results)


def _refused(error: Exception) -> ModelError:
    return ModelError(f"the TFLite runtime refuses the model: {clean(error, _MOST_REASON)}")
