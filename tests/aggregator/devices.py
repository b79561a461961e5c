# SPDX-License-Identifier: Apache-2.0
"""Scripted devices: they follow the protocol and send made-up deltas, always the same ones."""

from __future__ import annotations

import http.client
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from fedlearn.model import Model
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.wire import codec, delta
from fedlearn.wire.messages import (
    CheckIn,
    EncodedTensor,
    Metrics,
    Receipt,
    Refusal,
    TrainingFailure,
    TrainOrder,
    Update,
    Wait,
)

MODEL_PATH = Path(__file__).parents[2] / "demo/fedlearn_demo/digits/digits.tflite"
TASK = "digits"
METRICS = Metrics(1.0, 0.5, 0.25, 0.2, 30_000_000, 0.6, 0.8)
MAX_BYTES = 1 << 24


def start_model() -> Model:
    return Model.parse(MODEL_PATH.read_bytes())


def make_update(model: Model, device: str, number: int, *, tail: str = "last") -> Update:
    """An update that depends on the model, the device and the round, and on nothing else."""
    rng = np.random.default_rng([number, zlib.crc32(device.encode())])
    tensors = []
    for tensor in trainable_tensors(model, tail):
        reach = 3 if tensor.dtype == "int8" else 400
        old = model.array(tensor.index).astype(np.int64)
        new = old + rng.integers(-reach, reach + 1, tensor.shape)
        if tensor.dtype == "int8":
            new = np.clip(new, -127, 127)
        encoding, data = delta.encode_delta(new - old)
        tensors.append(EncodedTensor(tensor.index, encoding, data))
    samples = 1 + zlib.crc32(device.encode()) % 500
    return Update(TASK, number, model.digest, device, samples, METRICS, tuple(tensors))


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def refusal(self) -> Refusal:
        return codec.decode(Refusal, self.body, max_bytes=MAX_BYTES)

    @property
    def receipt(self) -> Receipt:
        return codec.decode(Receipt, self.body, max_bytes=MAX_BYTES)


@dataclass
class Device:
    """One device on one connection; every call blocks."""

    url: str
    name: str
    tail: str = "last"
    models: dict[bytes, Model] = field(default_factory=dict)
    timeout_s: float = 30.0
    _connection: http.client.HTTPConnection | None = None

    def request(
        self, method: str, path: str, body: bytes | None = None, /, **headers: str
    ) -> Answer:
        address = urlsplit(self.url).netloc
        if self._connection is None:
            self._connection = http.client.HTTPConnection(address, timeout=self.timeout_s)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            named.setdefault("Content-Type", "application/cbor")
        try:
            self._connection.request(method, path, body, named)
            response = self._connection.getresponse()
            answer = Answer(response.status, dict(response.headers), response.read())
        except Exception:
            self.close()
            raise
        if response.will_close:
            self.close()
        return answer

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def check_in(self, failure: TrainingFailure | None = None) -> TrainOrder | Wait:
        body = codec.encode(CheckIn(TASK, self.name, failure))
        answer = self.request("POST", "/v1/checkin", body)
        assert answer.status == 200, answer.refusal
        return codec.decode((TrainOrder, Wait), answer.body, max_bytes=MAX_BYTES)

    def order(self) -> TrainOrder:
        """Check in and be given a seat."""
        answer = self.check_in()
        assert isinstance(answer, TrainOrder), answer
        return answer

    def wait(self, failure: TrainingFailure | None = None) -> Wait:
        """Check in and be told to wait."""
        answer = self.check_in(failure)
        assert isinstance(answer, Wait), answer
        return answer

    def model(self, digest: bytes) -> Model:
        if digest not in self.models:
            answer = self.request("GET", f"/v1/models/{digest.hex()}")
            assert answer.status == 200
            self.models[digest] = Model.parse(answer.body)
        return self.models[digest]

    def train(self, order: TrainOrder) -> bytes:
        model = self.model(order.model)
        return codec.encode(make_update(model, self.name, order.round, tail=self.tail))

    def send(self, number: int, body: bytes) -> Answer:
        return self.request("PUT", f"/v1/rounds/{number}/updates/{self.name}", body)
