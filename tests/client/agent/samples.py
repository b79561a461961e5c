# SPDX-License-Identifier: Apache-2.0
"""An update as a device sends it."""

from fedlearn.wire.messages import EncodedTensor, Encoding, Metrics, Update

UPDATE = Update(
    task="digits",
    round=3,
    model=bytes(range(32)),
    device="board",
    samples=10,
    metrics=Metrics(1.0, 0.5, 0.0, 0.0, 12_345_678, 0.5, 0.75),
    tensors=(EncodedTensor(5, Encoding.INT8, b"\x01\x00\xff"),),
)
