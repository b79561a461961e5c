# SPDX-License-Identifier: Apache-2.0
"""The wire protocol: messages, their CBOR, and integer deltas in few bytes. `protocol.cddl` is its
description.
"""
