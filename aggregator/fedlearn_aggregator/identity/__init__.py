# SPDX-License-Identifier: Apache-2.0
"""Who may take part: the CA of a fleet, its one-time tokens, its devices, and their access."""
