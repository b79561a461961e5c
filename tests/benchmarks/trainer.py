# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of training, side by side: `make bench-trainer`.

`python -m tests.benchmarks.trainer --run ours c [DATA [EPOCHS]]` is one run of one contender, in
this process, and prints its result as JSON; without `--run`, `comparison` starts such processes in
turn. Until a contender is chosen this module imports next to nothing: what it had in memory would
count as the contender's.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from tests.benchmarks.case import CASES, settle_environment

# Those that are no module of the same name: `torch` would hide PyTorch itself.
_MODULES = {"torch": "pytorch"}


def _run(contender: str, case: str, data: str = "build/bench/digits.npz", epochs: str = "") -> None:
    settle_environment()
    module = import_module(f"tests.benchmarks.contenders.{_MODULES.get(contender, contender)}")
    result = module.run(CASES[case], Path(data), int(epochs or CASES[case].epochs))
    import json  # after the peak of memory was taken

    print(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        _run(*sys.argv[2:])
    else:
        from tests.benchmarks.comparison import main

        sys.exit(main(sys.argv[1:]))
