# SPDX-License-Identifier: Apache-2.0
"""Sensors make the data: from a stream of samples to windows in a ring on disk.

A process of its own (`fedlearn collect`) reads the source. It needs no network and no NumPy; the
agent, which has the network, opens no sensor. What lies between the two is the ring, and nothing of
it leaves the device: the trainer turns it into sums of integers.
"""

from fedlearn.collect.sample import Sample

__all__ = ["Sample"]
