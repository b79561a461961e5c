# SPDX-License-Identifier: Apache-2.0
"""The digits task: handwritten digits, and a model that has seen only half of them.

`README.md` in this folder tells where the files come from.
"""

from fedlearn_demo.digits.dataset import (
    MODEL_PATH,
    dirichlet_split,
    load_test,
    load_train,
)

__all__ = ["MODEL_PATH", "dirichlet_split", "load_test", "load_train"]
