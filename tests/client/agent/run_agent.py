# SPDX-License-Identifier: Apache-2.0
"""The agent with a fake trainer, as a process: run_agent.py CONFIG MODE MODULES ROOT.

After it has stopped it writes the names of all modules that it had imported to MODULES.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fedlearn.agent import permission
from fedlearn.agent.agent import Agent
from fedlearn.agent.stop import StopSignal
from fedlearn.config import load_config
from fedlearn.log import setup
from fedlearn.notify import Notifier

config, mode, modules, root = sys.argv[1:]
setup("debug")
notifier = Notifier.take()
stop = StopSignal()
stop.install()
worker = (sys.executable, str(Path(__file__).with_name("fake_worker.py")), f"--mode={mode}")
permission.INTERVAL_S = 0.1
Agent(
    load_config(Path(config)),
    stop,
    worker=worker,
    # Delays that a test can wait for, and that show which failure in a row it is: 0.05, 0.1, 0.2 s
    uniform=lambda low, high: low + 0.05 * high,
    notifier=notifier,
    root=Path(root),
).run()
Path(modules).write_text("\n".join(sys.modules))
