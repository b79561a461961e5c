# SPDX-License-Identifier: Apache-2.0
"""Everything that can go wrong, in one tree.

`FedlearnError` is what a person can do something about: it carries a hint and an exit code, and
the commands print it as one line without a traceback. `ProtocolError` is a peer's fault and knows
the HTTP status to answer with. Whatever is neither is a fault of our own and keeps its traceback.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every fedlearn command (sysexits.h where it has one)."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    DATA = 65  # EX_DATAERR: a model, data set or message that cannot be used
    NO_INPUT = 66  # EX_NOINPUT: a file that is not there
    UNAVAILABLE = 69  # EX_UNAVAILABLE: no aggregator, port in use, no multicast
    IO = 74  # EX_IOERR: disk full, write failed
    CONFIG = 78  # EX_CONFIG: a configuration that cannot be used
    INTERRUPTED = 130  # 128 + SIGINT


class FedlearnError(Exception):
    """A failure with a sentence for a person: what is wrong, and (`hint`) what to do."""

    exit_code = ExitCode.FAILURE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(FedlearnError):
    """The configuration cannot be used."""

    exit_code = ExitCode.CONFIG


class MissingFileError(FedlearnError):
    """A file that was named is not there."""

    exit_code = ExitCode.NO_INPUT


class ModelError(FedlearnError):
    """The bytes are no fully-int8 `.tflite` that fedlearn can work with."""

    exit_code = ExitCode.DATA


class UnsupportedOperatorError(ModelError):
    """An operator of the tail cannot be trained; the message names it and a cut that works."""


class DatasetError(FedlearnError):
    """The training or test data cannot be used with the model."""

    exit_code = ExitCode.DATA


class NetworkError(FedlearnError):
    """The aggregator cannot be found, reached or trusted."""

    exit_code = ExitCode.UNAVAILABLE


class UnrecognisedError(NetworkError):
    """The aggregator does not take this device for one of its own, or no longer."""


class StorageError(FedlearnError):
    """The state on disk cannot be read or written."""

    exit_code = ExitCode.IO


class TrainerError(FedlearnError):
    """The trainer process failed or died."""


class TrainerMemoryError(TrainerError):
    """It failed or died because it took too much memory.

    `need_kib` is what it had taken beside the program itself; 0 if that is not known.
    """

    def __init__(self, message: str, *, hint: str = "", need_kib: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.need_kib = need_kib


class ProtocolError(FedlearnError):
    """A peer sent something that is wrong; `status` is the HTTP status that says so.

    400 malformed, 404 unknown, 409 conflict, 410 the round is closed, 413 too large, 422 well
    formed but refused.
    """

    exit_code = ExitCode.DATA

    def __init__(self, message: str, *, status: int = 400, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
