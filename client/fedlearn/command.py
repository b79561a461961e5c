# SPDX-License-Identifier: Apache-2.0
"""How a command ends: one line for a person, and an exit code for a script."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from fedlearn.errors import ExitCode, FedlearnError

# What a disk, or a quota on it, answers to a program that prints into a file.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Stopped(BaseException):
    """A signal asked a command to end that has processes to end first."""

    def __init__(self, number: int) -> None:
        self.number = number


def stop_on_signals() -> None:
    """Raise `Stopped` at SIGINT, SIGTERM or SIGHUP, each once: what it ends must not be cut off."""

    def ask(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Stopped(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ask)


def run(program: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit code; what went wrong stands on stderr."""
    try:
        code = command()
        # Here and not at exit, where Python would complain in words of its own.
        sys.stdout.flush()
        return code
    except FedlearnError as error:
        return _fail(program, f"error: {error}", error.exit_code)
    except Stopped as stopped:
        return _fail(program, "stopped; no process is left", 128 + stopped.number)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has what it wanted.
        _drop_output()
        return ExitCode.OK
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _drop_output()
        return _fail(program, f"error: cannot write the output: {error.strerror}", ExitCode.IO)


def _fail(program: str, text: str, code: int) -> int:
    print(f"{program}: {text}", file=sys.stderr)
    return code


def _drop_output() -> None:
    """Python flushes what is left at exit, and must not fail then."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
