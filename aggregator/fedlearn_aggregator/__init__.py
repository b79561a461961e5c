# SPDX-License-Identifier: Apache-2.0
"""fedlearn_aggregator: runs the rounds of one LAN and turns integer deltas into the next model."""
