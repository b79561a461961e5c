# SPDX-License-Identifier: Apache-2.0
"""The command line of `fedlearn-aggregator`: its sub-commands, options and their help."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedlearn.log import LEVELS
from fedlearn.plan_arguments import add_plan, add_what_is_trained, real, whole
from fedlearn.version import VERSION
from fedlearn_aggregator.aggregation import MAX_SAMPLES
from fedlearn_aggregator.optimizers import OptimizerName
from fedlearn_aggregator.robust import AggregationSettings, Rule
from fedlearn_aggregator.task import KEEP_MODELS, KEEP_UPDATES

# From making the image to its boards' first boot.
TOKEN_DAYS = 30
MOST_TOKENS = 10_000
# Unassigned by IANA.
DEFAULT_PORT = 8470

_EXIT_CODES = """\
exit codes: 0 ok, 1 failure, 2 wrong usage, 65 unusable model or data, 66 no such file, 69 the
address cannot be listened on, 74 disk error or data directory in use, 78 unusable configuration,
130 interrupted"""


def parser() -> argparse.ArgumentParser:
    """The parser; `command` names the sub-command."""
    top = argparse.ArgumentParser(
        prog="fedlearn-aggregator",
        description="Runs federated learning of an int8 .tflite model for the devices of a LAN.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"fedlearn-aggregator {VERSION}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _init(
        _command(
            commands,
            "init",
            "begin a task from a .tflite model",
            """\
examples:
  fedlearn-aggregator init --data-dir digits --task digits --model digits.tflite --cohort 10
  fedlearn-aggregator init --data-dir pumps --task pumps --model pumps.tflite --tail dense \\
      --cohort 20 --minimum 5 --deadline-s 3600 --round-interval-s 86400""",
        )
    )
    _serve(
        _command(
            commands,
            "serve",
            "run the rounds of a task",
            """\
examples:
  fedlearn-aggregator serve --data-dir digits
  fedlearn-aggregator serve --data-dir digits --insecure --interface 127.0.0.1 --port 0

The line on stdout says where it listens; DIR/serve.json says it to scripts (url, pid, task).""",
        )
    )
    _tokens(
        _command(
            commands,
            "tokens",
            "make tokens for devices to enrol with",
            """\
examples:
  fedlearn-aggregator tokens --data-dir digits --count 20 --days 90
  fedlearn-aggregator tokens --data-dir digits --device pump-07    # it lost its key

They are printed once; the aggregator keeps their SHA-256 alone.""",
        )
    )
    _devices(
        _command(
            commands,
            "devices",
            "list the devices that are enrolled, name, block or remove them",
            """\
examples:
  fedlearn-aggregator devices --data-dir digits
  fedlearn-aggregator devices --data-dir digits name pump-07 "hall 3, left"
  fedlearn-aggregator devices --data-dir digits block pump-07
  fedlearn-aggregator devices --data-dir digits remove pump-07

What is blocked is refused from its next request on and cannot enrol; what is removed can, with a
new token. Both work while serve runs.""",
        )
    )
    for name, text in (
        ("status", "show the task and its last rounds"),
        ("rounds", "show all rounds"),
    ):
        command = _command(
            commands, name, text, f"example: fedlearn-aggregator {name} --data-dir digits"
        )
        command.add_argument("--json", action="store_true", help="print JSON")
    export = _command(
        commands,
        "export",
        "take a model out",
        """\
examples:
  fedlearn-aggregator export --data-dir digits digits-new.tflite
  fedlearn-aggregator export --data-dir digits before.tflite --round 0""",
    )
    export.add_argument("output", type=Path, metavar="OUT.tflite", help="file to write")
    export.add_argument(
        "--round", type=int, metavar="N", help="model after round N; 0: the starting model"
    )
    version = commands.add_parser("version", help="print the version")
    version.add_argument("--json", action="store_true", help="print JSON")
    return top


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, epilog: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--data-dir", type=Path, required=True, metavar="DIR", help="directory of the task"
    )
    return command


def _init(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--task", required=True, metavar="NAME", help="name that the devices are configured for")
    add("--model", type=Path, required=True, metavar="FILE.tflite", help="fully-int8 model")
    add_what_is_trained(command)
    add(
        "--fixed-scales",
        action="store_true",
        help="keep the model's scales (default: they follow what the devices measure)",
    )
    add("--force", action="store_true", help="move an existing task aside")
    rounds = command.add_argument_group("rounds").add_argument
    rounds("--cohort", type=int, default=10, metavar="N", help="updates of a round (default: 10)")
    rounds(
        "--minimum",
        type=int,
        metavar="N",
        help="updates that suffice at the deadline (default: half the cohort)",
    )
    rounds(
        "--over-selection",
        type=float,
        default=1.3,
        metavar="FACTOR",
        help="seats for each update wanted (default: 1.3)",
    )
    rounds(
        "--deadline-s",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds from the first seat to the end of a round (default: 600)",
    )
    rounds(
        "--rounds", type=int, default=0, metavar="N", help="stop after N rounds (default: never)"
    )
    rounds(
        "--round-interval-s",
        type=float,
        default=0.0,
        metavar="S",
        help="seconds from the opening of one round to the next, at least (default: 0)",
    )
    rounds(
        "--max-samples",
        type=int,
        default=MAX_SAMPLES,
        metavar="N",
        help=f"samples that one update may count for (default: {MAX_SAMPLES})",
    )
    add_plan(command)
    add("--seed", type=int, metavar="N", help="repeat a run (default: random)")
    server = command.add_argument_group("server optimiser").add_argument
    server(
        "--optimizer",
        type=OptimizerName,
        choices=list(OptimizerName),
        default=OptimizerName.FEDAVG,
        metavar="|".join(OptimizerName),
        help="default: fedavg",
    )
    server("--server-learning-rate", type=float, metavar="RATE", help="default: 1; fedadam: 0.01")
    server("--server-momentum", type=float, default=0.9, metavar="B", help="fedavgm; default: 0.9")
    server("--beta1", type=float, default=0.9, metavar="B", help="fedadam; default: 0.9")
    server("--beta2", type=float, default=0.99, metavar="B", help="fedadam; default: 0.99")
    server("--tau", type=float, default=1e-3, metavar="T", help="fedadam; default: 0.001")
    defence = command.add_argument_group(
        "hostile devices", "Other than with the plain mean, each update of a round counts the same."
    ).add_argument
    defence(
        "--aggregation",
        type=Rule,
        choices=list(Rule),
        default=Rule.MEAN,
        metavar="|".join(Rule),
        help="how updates become one (default: mean, weighted by samples)",
    )
    defence(
        "--hostile",
        type=float,
        default=AggregationSettings().hostile,
        metavar="SHARE",
        help="share of a round's updates that may be hostile, for all but the mean and the median "
        f"(default: {AggregationSettings().hostile})",
    )
    defence(
        "--mix-nearest",
        action="store_true",
        help="average each update with its nearest before a median or trimmed mean: for devices "
        "with unlike data",
    )
    defence(
        "--clip-update-norm",
        type=float,
        default=0.0,
        metavar="FACTOR",
        help="scale down an update whose norm is above so many times the round's median norm "
        "(default: none)",
    )
    defence(
        "--drop-update-norm",
        type=float,
        default=0.0,
        metavar="FACTOR",
        help="leave out an update whose norm is above so many times the round's median norm "
        "(default: none)",
    )
    defence(
        "--max-update-norm",
        type=float,
        default=0.0,
        metavar="NORM",
        help="refuse an update with a larger l2 norm, in real units (default: none). With any of "
        "these bounds the log of serve shows the norms of each round",
    )
    keep = command.add_argument_group("retention").add_argument
    keep(
        "--keep-models",
        type=int,
        default=KEEP_MODELS,
        metavar="N",
        help=f"models of the last N closed rounds stay (default: {KEEP_MODELS})",
    )
    keep(
        "--keep-updates",
        type=int,
        default=KEEP_UPDATES,
        metavar="N",
        help=f"updates of the last N rounds stay (default: {KEEP_UPDATES})",
    )

    identity = command.add_argument_group(
        "identity", "The CA, the server's certificate and tokens, in DIR/identity."
    ).add_argument
    identity(
        "--server-name",
        action="append",
        default=[],
        metavar="NAME|ADDRESS",
        help="what devices with an aggregator.url call this machine; may be repeated (default: its "
        "host name, NAME.local, and their addresses)",
    )
    identity(
        "--tokens",
        type=whole(0, MOST_TOKENS),
        metavar="N",
        help="tokens to make (default: one for each of --cohort)",
    )
    identity(
        "--token-days",
        type=real(),
        default=TOKEN_DAYS,
        metavar="D",
        help=f"how long they count (default: {TOKEN_DAYS})",
    )
    identity(
        "--identity",
        type=Path,
        metavar="FOLDER",
        help="begin with a copy of another data directory's folder `identity`",
    )


def _tokens(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--count", type=whole(1, MOST_TOKENS), default=1, metavar="N", help="how many (default: 1)")
    add(
        "--days",
        type=real(),
        default=TOKEN_DAYS,
        metavar="D",
        help=f"how long they count (default: {TOKEN_DAYS})",
    )
    add(
        "--uses",
        type=whole(1, MOST_TOKENS),
        default=1,
        metavar="N",
        help="enrolments with each (default: 1); more let one image serve many boards, and whoever "
        "reads it enrol",
    )
    add("--device", metavar="NAME", help="for this device alone, which may come with a new key")
    add("--json", action="store_true", help="print JSON")


def _devices(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")
    actions = command.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="list them (what is done without an ACTION)")
    listing.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON"
    )
    for action, text in (
        ("name", "say what a device is, for people"),
        ("block", "refuse a device"),
        ("unblock", "let it in again"),
        ("remove", "forget a device and its key"),
    ):
        each = actions.add_parser(action, help=text, description=text[0].upper() + text[1:] + ".")
        each.add_argument("device", metavar="DEVICE", help="its device.name")
        if action == "name":
            each.add_argument("label", metavar="TEXT", help="what to show beside it")


def _serve(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--host", help="address to listen on (default: all; with --insecure: 127.0.0.1)")
    add(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        help=f"0 takes a free one (default: {DEFAULT_PORT})",
    )
    add(
        "--insecure",
        action="store_true",
        help="plain http and any device, on loopback addresses only",
    )
    add(
        "--interface",
        action="append",
        default=[],
        metavar="NAME|ADDRESS",
        help="publish by mDNS on this interface; may be repeated (default: all)",
    )
    add("--no-mdns", action="store_true", help="publish nothing; devices need a fixed url")
    add(
        "--evaluate",
        type=Path,
        metavar="TEST.npz",
        help="judge every new model on these samples (arrays x and y), beside the rounds",
    )
    add("--exit-when-done", action="store_true", help="end after the last round")
    add("--log-level", choices=LEVELS, default="info", help="default: info")
