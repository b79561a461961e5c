# SPDX-License-Identifier: Apache-2.0
"""fedlearn: federated learning of int8 `.tflite` models on embedded Linux, the device's side.

Importing this package imports nothing else: the agent stays small while it waits, and only the
process that trains loads NumPy and the TFLite runtime.
"""

from fedlearn.version import VERSION

__version__ = VERSION
