# SPDX-License-Identifier: Apache-2.0
"""The training plan on a command line: the same options for a person's own training and a task."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from fedlearn.errors import ConfigError
from fedlearn.wire.messages import (
    LOSSES,
    OVERSHOOTS,
    OVERSHOOTS_HINT,
    SCHEDULES,
    TAILS,
    TrainingPlan,
)


def whole(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """An argument type: a whole number within these bounds."""

    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"must be {least} or more" if most == 2**63 - 1 else f"must be {least} to {most}"
            )
        return value

    return number


def real(*, zero: bool = False, below: float = float("inf")) -> Callable[[str], float]:
    """An argument type: a finite number above 0, or from 0 on with `zero`, and below a bound."""

    def number(text: str) -> float:
        value = float(text)
        if not (0 < value < below or (zero and value == 0)):
            lower = "0 or more" if zero else "above 0"
            upper = "" if below == float("inf") else f" and below {below:g}"
            raise argparse.ArgumentTypeError(f"must be {lower}{upper}")
        return value

    return number


def tail(text: str) -> str:
    """An argument type: the name of a tail."""
    if text not in TAILS and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be {', '.join(TAILS)} or a number of layers")
    return text


def _class_weights(text: str) -> tuple[float, ...]:
    values = tuple(float(each) for each in text.split(","))
    if not all(0 < each < float("inf") for each in values):
        raise argparse.ArgumentTypeError("must be numbers above 0, separated by commas")
    return values


def add_what_is_trained(parser: argparse.ArgumentParser) -> None:
    """Options that choose the tensors to train."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--tail",
        type=tail,
        default="all",
        metavar="|".join(TAILS) + "|N",
        help="layers to train: the last, the dense ones at the end, all, or the last N "
        "(default: all)",
    )
    choice.add_argument(
        "--budget-kib",
        type=whole(1),
        metavar="KIB",
        help="train what fits into so much memory, beside what the program itself needs",
    )


def add_plan(parser: argparse.ArgumentParser) -> None:
    """The options of a `TrainingPlan`."""
    add = parser.add_argument_group("training on the devices").add_argument
    add("--loss", choices=LOSSES, default=LOSSES[0], help="default: %(default)s")
    add("--epochs", type=whole(1), default=1, metavar="N", help="passes over the data (default: 1)")
    add(
        "--steps",
        type=whole(0),
        default=0,
        metavar="N",
        help="steps of SGD in place of the epochs (default: 0, as the epochs have)",
    )
    add("--batch-size", type=whole(1), default=16, metavar="N", help="default: 16")
    add(
        "--learning-rate",
        type=real(),
        default=0.1,
        metavar="RATE",
        help="default: 0.1",
    )
    add(
        "--schedule",
        choices=SCHEDULES,
        default="constant",
        help="how the learning rate falls over the training (default: constant)",
    )
    add(
        "--proximal",
        type=real(zero=True),
        default=0.0,
        metavar="MU",
        help="FedProx: pull towards the model that the training began with (default: 0)",
    )
    add(
        "--clip-norm",
        type=real(zero=True),
        default=0.0,
        metavar="NORM",
        help="largest l2 norm of a batch's gradient (default: 0, none)",
    )
    add(
        "--class-weights",
        type=_class_weights,
        default=(),
        metavar="W,W,...",
        help="factor of each class's loss (default: all 1)",
    )
    add(
        "--validation",
        type=real(zero=True, below=1.0),
        default=0.0,
        metavar="SHARE",
        help="share of the samples that is held out to judge with (default: 0)",
    )
    add(
        "--patience",
        type=whole(0),
        default=0,
        metavar="N",
        help="stop after N epochs without a better loss on them, and keep the best epoch's "
        "weights (default: 0, never)",
    )
    add(
        "--fraction-bits",
        type=whole(0, 8),
        default=8,
        metavar="N",
        help="bits beyond int8 of a weight while it trains; fewer than 8 round stochastically "
        "(default: 8)",
    )
    add(
        "--errors",
        choices=("int8", "float32"),
        default="int8",
        help="type of the error tensors; float32 is for comparison (default: int8)",
    )


def plan_of(options: argparse.Namespace) -> TrainingPlan:
    """The plan that was asked for; ConfigError where its parts do not fit together."""
    if options.patience and not options.validation:
        raise ConfigError(
            "to stop early takes samples to validate with", hint="give --validation 0.1, say"
        )
    plan = TrainingPlan(
        loss=options.loss,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        steps=options.steps,
        schedule=options.schedule,
        proximal=options.proximal,
        clip_norm=options.clip_norm,
        class_weights=options.class_weights,
        validation=options.validation,
        patience=options.patience,
        fraction_bits=options.fraction_bits,
        errors=options.errors,
    )
    if plan.overshoots:
        raise ConfigError(OVERSHOOTS, hint=OVERSHOOTS_HINT)
    return plan
