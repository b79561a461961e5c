# SPDX-License-Identifier: Apache-2.0
"""Damage to `.tflite` files, as a disk, a peer or an attacker may do it; a seed says which."""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from tests.client.networks import Network

# What counts, sizes and numbers of tensors become.
_EXTREME = (0, 1, 2, 7, 127, 128, 255, 1 << 15, 1 << 16, 1 << 24, (1 << 31) - 1, 1 << 31)
_NEGATIVE = tuple((1 << 32) - value for value in (1, 2, 4, 128, 1 << 16))


@dataclass(frozen=True)
class File:
    """A sound file, and the spans of it that are constants of more than a few bytes."""

    data: bytes
    constants: tuple[tuple[int, int], ...]

    def structure(self) -> list[int]:
        """Places of everything else."""
        inside: set[int] = set()
        for start, size in self.constants:
            inside.update(range(start, start + size))
        return [at for at in range(len(self.data)) if at not in inside]


class Mutator:
    """Makes mutants of some files: nine of ten changes hit the structure, not the weights."""

    def __init__(self, files: Sequence[File]) -> None:
        self._files = files
        self._structures = [file.structure() for file in files]

    def mutant(self, seed: int) -> bytes:
        """The mutant of this seed."""
        rng = random.Random(seed)
        which = rng.randrange(len(self._files))
        data = bytearray(self._files[which].data)
        places = self._structures[which]
        for _ in range(rng.choice((1, 1, 1, 1, 2, 4))):
            self._change(rng, data, places)
        return bytes(data)

    def _change(self, rng: random.Random, data: bytearray, places: Sequence[int]) -> None:
        if not data:
            return
        at = min(rng.choice(places), len(data) - 1)
        if rng.random() < 0.1:
            at = rng.randrange(len(data))
        word = at & ~3
        end = at + rng.choice((1, 2, 4, 4, 8, 64, 1000))
        match rng.randrange(14):
            case 0 | 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 3:
                data[at:] = b""
            case 4:
                data[at:at] = rng.choice((bytes(end - at), rng.randbytes(end - at), data[at:end]))
            case 5:
                del data[at:end]
            case 6 | 7 | 8:
                _put(data, word, rng.choice((*_EXTREME, *_NEGATIVE, len(data))))
            case 9 | 10:  # numbers of tensors, sizes, strides: near to what is there
                _put(data, word, _get(data, word) + rng.choice((-16, -4, -2, -1, 1, 1, 2, 3, 4, 8)))
            case 11 | 12:  # an offset to another place, or a copy of another word
                place = rng.choice(places) & ~3
                _put(data, word, rng.choice((place - word, _get(data, place))))
            case _:
                other = rng.choice(self._files).data
                source = rng.randrange(len(other))
                data[at:end] = other[source : source + end - at]


def _get(data: bytearray, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _put(data: bytearray, at: int, value: int) -> None:
    data[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")


def rewritten(network: Network, rng: random.Random) -> bytes:
    """A file that is whole as a flatbuffer, but whose graph is wrong in a place or two."""
    broken = deepcopy(network)
    for _ in range(rng.choice((1, 1, 1, 2))):
        _break(broken, rng)
    return broken.write()


def _break(network: Network, rng: random.Random) -> None:
    tensor, operator = rng.choice(network.tensors), rng.choice(network.operators)
    tensors = len(network.tensors)
    match rng.randrange(12):
        case 0 | 1:  # another shape
            shape = list(tensor["shape"])
            at = rng.randrange(len(shape)) if shape else 0
            size = rng.choice((0, 1, 2, 3, 5, 64, 1 << 12, 1 << 20))
            shape[at : at + rng.choice((0, 1, 1, 1, 1))] = rng.choice(([size], [size], [size], []))
            tensor["shape"] = tuple(shape)
        case 2:
            tensor["dtype"] = rng.choice((0, 2, 3, 4, 6, 7, 9))
        case 3:
            some = [2.0**-149, 1e-30, 1e-9, 0.5, 1.0, 1e3, 1e9, 3e38, 0.0, -1.0, np.inf, np.nan]
            count = rng.choice((0, 1, 1, len(tensor["scales"]), 2, 8))
            tensor["scales"] = np.array(rng.choices(some, k=count), np.float32)
            zero = rng.choice((-128, 0, 127, 255, 1 << 40))
            tensor["zeros"] = np.full(count, zero, np.int64)
        case 4:
            tensor["axis"] = rng.choice((-1, 0, 1, 3, 1 << 20))
        case 5:
            tensor["buffer"] = rng.randrange(len(network.buffers))
        case 6:  # other constants: axes, paddings, orders, sizes
            at = rng.randrange(len(network.buffers))
            values = bytearray(network.buffers[at])
            if values:
                place = 4 * rng.randrange(-(-len(values) // 4))
                value = rng.choice((-(1 << 31), -129, -2, -1, 0, 1, 2, 3, 9, 1 << 12, 1 << 20))
                values[place : place + 4] = value.to_bytes(4, "little", signed=True)
                network.buffers[at] = bytes(values)
        case 7:
            operator["code"] = rng.choice(
                (rng.choice(network.operators)["code"], rng.randrange(160))
            )
        case 8 | 9:  # other operands
            kind = rng.choice(("inputs", "inputs", "outputs"))
            numbers = list(operator[kind])
            at = rng.randrange(len(numbers) + 1)
            numbers[at : at + rng.choice((0, 1, 1, 1))] = rng.choice(
                ([rng.randrange(tensors)], [rng.randrange(tensors)], [-1], [])
            )
            operator[kind] = numbers
        case 10:
            operator["options"] = rng.choice((None, rng.choice(network.operators)["options"]))
        case _:
            other = rng.randrange(len(network.operators))
            network.operators.insert(other, network.operators.pop())
