# SPDX-License-Identifier: Apache-2.0
"""The agent: finds the aggregator, asks for work, has it done, and delivers."""
