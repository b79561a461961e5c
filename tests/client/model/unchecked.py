# SPDX-License-Identifier: Apache-2.0
"""A process that the TFLite runtime may crash.

Without arguments it runs the file on standard input once, without fedlearn's checks. With "checked"
or "unchecked" and a number it runs so many mutants of `test_corruption`, and prints the number of
each before it, then how many parsed and "done".
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress

from fedlearn.errors import FedlearnError
from fedlearn.model import Model, model
from fedlearn.probe import run_once


def main(mode: str = "unchecked", count: int = 0) -> None:
    """Run what the arguments say."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from tests.client.model.test_corruption import mutant

    mutant(1)  # sound files are parsed with all checks
    if mode == "unchecked":
        vars(model)["verify"] = lambda data: None
        vars(model)["validate"] = lambda *arguments: None
    if not count:
        with suppress(FedlearnError):
            run_once(sys.stdin.buffer.read())
        return
    parsed = 0
    for seed in range(count):
        data = mutant(seed)
        print(seed, flush=True)
        with suppress(FedlearnError):
            Model.parse(data)
            parsed += 1
            run_once(data)
    print(parsed, "done")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1], int(sys.argv[2]))
    else:
        main()
