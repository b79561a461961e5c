# SPDX-License-Identifier: Apache-2.0
"""The verifier's idea of the schema, against the schema's own generated code."""

from __future__ import annotations

import flatbuffers
import pytest
import tflite

from fedlearn.errors import ModelError
from fedlearn.model import Model, structure
from tests.client.model import samples

_BYTES = {"Bool": 1, "Int8": 1, "Uint8": 1, "Int32": 4, "Uint32": 4, "Float32": 4, "Int64": 8}
_NAMES = {"Quantization": "QuantizationParameters"}
_OPTIONS = {
    number: name
    for name, number in vars(tflite.BuiltinOptions).items()
    if isinstance(number, int) and number
}


class _Recorder:
    """In a builder's place: notes which slots are written, and with how many bytes."""

    def __init__(self) -> None:
        self.slots: dict[int, int | None] = {}

    def __getattr__(self, name: str) -> object:
        kind = name.removeprefix("Prepend").removesuffix("Slot")
        size = None if kind.startswith("UOffset") else _BYTES.get(kind.replace("Uint64", "Int64"))

        def write(slot: int, *_value: object) -> None:
            self.slots[slot] = size

        return write


def _written(name: str) -> dict[int, int | None]:
    """Bytes by slot of a table's scalars; None for what is an offset."""
    recorder = _Recorder()
    for function in dir(tflite):
        if function.startswith(f"{name}Add"):
            getattr(tflite, function)(recorder, 0)
    return recorder.slots


def _known(layout: str) -> dict[int, int | None]:
    return {
        slot: None if field.is_vector or field.table else field.size
        for slot, field in enumerate(structure._LAYOUTS[layout])
        if field is not None
    }


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        *((name, _NAMES.get(name, name)) for name in structure._TABLES if name[:5] != "Block"),
        *((f"options {number}", name) for number, name in _OPTIONS.items()),
    ],
)
def test_layouts_are_the_schemas(layout: str, name: str) -> None:
    known, written = _known(layout), _written(name)
    for slot in known.keys() & written.keys():
        assert known[slot] == written[slot], slot
    # Newer schemas have more fields at the end; refused ones are not in `known`.
    refused = {s for s, field in enumerate(structure._LAYOUTS[layout]) if field is None}
    assert written.keys() <= known.keys() | refused


def test_all_types_of_options_are_known() -> None:
    assert max(_OPTIONS) == structure.LAST_OPTIONS


def test_every_byte_of_structure_is_looked_at() -> None:
    """Cut anywhere, the file is refused: something that lies behind the cut is missed."""
    for data in samples.files()[1:]:
        padding = len(data) - len(data.rstrip(b"\0"))
        for end in range(0, len(data) - padding, 7):
            with pytest.raises(ModelError):
                Model.parse(data[:end])


def _shared(signatures: int, maps: int) -> bytes:
    """Signatures that all share one vector of inputs, whose elements are one table."""
    builder = flatbuffers.Builder(1024)
    name = builder.CreateString("x")
    tflite.TensorMapStart(builder)
    tflite.TensorMapAddName(builder, name)
    vector = _vector(builder, [int(tflite.TensorMapEnd(builder))] * maps)
    made = []
    for _ in range(signatures):
        tflite.SignatureDefStart(builder)
        tflite.SignatureDefAddInputs(builder, vector)
        tflite.SignatureDefAddSignatureKey(builder, name)
        made.append(int(tflite.SignatureDefEnd(builder)))
    signature_vector, none = _vector(builder, made), _vector(builder, [])
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, 3)
    tflite.ModelAddSignatureDefs(builder, signature_vector)
    for add in (tflite.ModelAddBuffers, tflite.ModelAddOperatorCodes, tflite.ModelAddSubgraphs):
        add(builder, none)
    builder.Finish(tflite.ModelEnd(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _vector(builder: flatbuffers.Builder, tables: list[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    for table in tables:
        builder.PrependUOffsetTRelative(table)
    return int(builder.EndVector())


def test_shared_tables_are_looked_at_once() -> None:
    """4,000 x 4,000 would take minutes."""
    structure.verify(_shared(4_000, 4_000))
    with pytest.raises(ModelError, match="more than"):  # control: there is a bound on all work
        structure.verify(_shared(1, structure.MAX_TABLES))
