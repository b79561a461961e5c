# SPDX-License-Identifier: Apache-2.0
"""What the aggregator must survive, in figures: `make bench-faults`; one module an ordeal."""
