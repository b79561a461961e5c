# SPDX-License-Identifier: Apache-2.0
"""The gestures task: shoulder exercises that a smartwatch felt, one person a device."""
