# SPDX-License-Identifier: Apache-2.0
"""The BitBake layer without BitBake: as much as the tests and the stand-in image need."""
