# SPDX-License-Identifier: Apache-2.0
"""Valid messages of every kind for hypothesis, written out apart from the codec's own ranges."""

from __future__ import annotations

import string

from hypothesis import strategies as st

from fedlearn.wire.messages import (
    ActivationRange,
    Certificate,
    CheckIn,
    Difference,
    EncodedTensor,
    Enrolment,
    Limits,
    Message,
    Metrics,
    Receipt,
    Refusal,
    TaskDescriptor,
    TrainableTensor,
    TrainingFailure,
    TrainingPlan,
    TrainOrder,
    Update,
    Wait,
)

counts = st.integers(0, 2**63 - 1)
positives = st.integers(1, 2**63 - 1)
names = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=64)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
digests = st.binary(min_size=32, max_size=32)
seconds = st.floats(0.0, 1e9)
shares = st.floats(0.0, 1.0)
reals = st.floats(allow_nan=False, allow_infinity=False)

plans = st.builds(
    TrainingPlan,
    texts,
    positives,
    positives,
    reals,
    counts,
    st.sampled_from(["constant", "linear", "cosine"]),
    reals,
    reals,
    st.lists(reals, max_size=4).map(tuple),
    shares,
    counts,
    st.integers(0, 8),
    st.sampled_from(["int8", "float32"]),
)
limits = st.builds(Limits, counts, counts)
metrics = st.builds(
    Metrics, reals, reals, seconds, seconds, counts, *[st.none() | shares for _ in range(3)]
)
ranges = st.builds(ActivationRange, counts, reals, reals, shares)

# Encoding 0 has no data; which bytes the others may have is not the codec's business.
encoded = st.one_of(st.just((0, b"")), st.tuples(st.integers(1, 5), st.binary(max_size=300)))
encoded_tensors = st.builds(lambda index, e: EncodedTensor(index, *e), counts, encoded)
trainable_tensors = st.builds(
    TrainableTensor,
    counts,
    texts,
    st.lists(counts, max_size=4).map(tuple),
    st.sampled_from(["int8", "int32"]),
)

tasks = st.builds(
    TaskDescriptor,
    names,
    counts,
    texts,
    digests,
    counts,
    counts,
    st.lists(trainable_tensors, max_size=5).map(tuple),
    plans,
    limits,
)
checkins = st.builds(CheckIn, names, names, st.none() | st.builds(TrainingFailure, counts, texts))
orders = st.builds(
    TrainOrder,
    counts,
    digests,
    counts,
    st.integers(0, 2**64 - 1),
    seconds,
    st.lists(counts, max_size=30).map(tuple),
    plans,
    limits,
)
waits = st.builds(Wait, seconds, texts)
updates = st.builds(
    Update,
    names,
    counts,
    digests,
    names,
    counts,
    metrics,
    st.lists(encoded_tensors, max_size=6).map(tuple),
    st.lists(ranges, max_size=3).map(tuple),
)
differences = st.builds(
    lambda base, target, e: Difference(base, target, *e), digests, digests, encoded
)
enrolments = st.builds(
    Enrolment,
    st.binary(min_size=1, max_size=300),
    st.none() | st.from_regex(r"\A[A-Za-z0-9._~-]{16,128}\Z"),
)
certificates = st.builds(Certificate, st.binary(min_size=1, max_size=900))
receipts = st.builds(Receipt, counts, st.booleans())
refusals = st.builds(Refusal, texts, texts)

# By the name of the rule in protocol.cddl, which is also the message's "kind".
BY_KIND: dict[str, st.SearchStrategy[Message]] = {
    "task": tasks,
    "enrolment": enrolments,
    "certificate": certificates,
    "checkin": checkins,
    "train": orders,
    "wait": waits,
    "update": updates,
    "difference": differences,
    "receipt": receipts,
    "refusal": refusals,
}
messages: st.SearchStrategy[Message] = st.one_of(*BY_KIND.values())
