# SPDX-License-Identifier: Apache-2.0
"""The `fedlearn` command.

Each sub-command imports what it needs when it runs: the agent lives in this process and must not
carry NumPy, and a person who asks for the status should not wait for the runtime.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fedlearn import command
from fedlearn.collect import cli as collecting
from fedlearn.collect.settings import told
from fedlearn.config import DEFAULT_PATH, Config, PolicyConfig, TrainingConfig, keys, load_config
from fedlearn.errors import ConfigError, DatasetError, ExitCode, FedlearnError
from fedlearn.log import LEVELS, setup
from fedlearn.plan_arguments import add_plan, add_what_is_trained, plan_of, real, whole
from fedlearn.text import counted
from fedlearn.version import VERSION
from fedlearn.wire.messages import LOSSES

if TYPE_CHECKING:
    from fedlearn.trainer.local import LocalResult

_HELP = """examples:
  fedlearn agent --config device.toml --check-config
  fedlearn status
  fedlearn model inspect digits.tflite

exit codes:
  0 done   1 failed   2 wrong usage   65 unusable model or data   66 no such file
  69 no aggregator   74 cannot read or write   78 wrong configuration, or options that do not fit
  130 interrupted   143 terminated
"""
_Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    return command.run("fedlearn", lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedlearn",
        description="Federated learning of int8 .tflite models, the device's side.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fedlearn {VERSION}")
    # Without `prog` argparse would load `shutil`, and two compression libraries with it.
    commands = parser.add_subparsers(required=True, metavar="COMMAND", prog=parser.prog)

    agent = _add(commands, "agent", _agent, "train for an aggregator, until stopped", _agent_help())
    _add_config(agent)
    agent.add_argument(
        "--check-config", action="store_true", help="check the configuration and say what it means"
    )
    agent.add_argument("--log-level", choices=LEVELS, default="info")

    status = _add(
        commands,
        "status",
        _status,
        "tell what the agent does",
        "examples:\n  fedlearn status\n  fedlearn status --json | jq .rounds_trained\n\n"
        "exit code 1 when the agent does not run",
    )
    _add_config(status)
    _add_json(status)

    collect = _add(
        commands,
        "collect",
        collecting.collect,
        "collect windows of a sensor's stream, until stopped",
        collecting.COLLECT_HELP,
    )
    _add_config(collect)
    collect.add_argument("--log-level", choices=LEVELS, default="info")

    label = _add(
        commands,
        "label",
        collecting.label,
        "give a label to what a sensor sends, or has sent",
        collecting.LABEL_HELP,
    )
    _add_config(label)
    collecting.add_label_arguments(label)

    model = commands.add_parser("model", help="inspect, evaluate or train a .tflite file")
    _add_model_commands(model.add_subparsers(required=True, metavar="COMMAND", prog=model.prog))

    version = _add(commands, "version", _version, "print the versions of fedlearn and its runtime")
    _add_json(version)
    return parser


def _add_model_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    inspect = _add(
        commands,
        "inspect",
        _inspect,
        "describe a model and what of it can be trained",
        "examples:\n  fedlearn model inspect digits.tflite\n"
        "  fedlearn model inspect digits.tflite --data train.npz --json",
    )
    evaluate = _add(
        commands,
        "evaluate",
        _evaluate,
        "measure accuracy and loss by the interpreter",
        "example:\n  fedlearn model evaluate digits.tflite test.npz",
    )
    train = _add(
        commands,
        "train",
        _train,
        "train a model on this machine alone",
        "example:\n  fedlearn model train digits.tflite train.npz --test test.npz "
        "--out better.tflite",
    )
    score = _add(
        commands,
        "score",
        _score,
        "score samples with an autoencoder: which are anomalies",
        "example:\n  fedlearn model score autoencoder.tflite today.npz --normal normal.npz",
    )
    for each in (inspect, evaluate, train, score):
        each.add_argument("model", type=Path, help="fully-int8 .tflite file")
        _add_json(each)
    for each in (evaluate, train, score):
        each.add_argument("data", type=Path, help="npz file with arrays x (inputs), y (labels)")
    evaluate.add_argument("--threads", type=whole(1), default=1)
    evaluate.add_argument("--loss", choices=LOSSES, default=LOSSES[0], help="default: %(default)s")
    inspect.add_argument(
        "--data", type=Path, metavar="NPZ", help="samples (array x) that show how far it saturates"
    )
    inspect.add_argument("--batch-size", type=whole(1), default=16, metavar="N", help="default: 16")
    limit = score.add_mutually_exclusive_group()
    limit.add_argument(
        "--normal",
        type=Path,
        metavar="NPZ",
        help="normal samples that tell the threshold, none of them trained on (default: the data)",
    )
    limit.add_argument(
        "--threshold", type=real(), metavar="SCORE", help="score above which a sample is an anomaly"
    )
    score.add_argument(
        "--quantile",
        type=real(below=1.0),
        default=0.995,
        metavar="Q",
        help="share of the normal samples below the threshold (default: 0.995)",
    )
    train.add_argument("--out", type=Path, required=True, help="where to write the trained model")
    train.add_argument(
        "--test",
        type=Path,
        help="npz file to measure with (default: the held-out samples, else the data)",
    )
    train.add_argument(
        "--fixed-scales", action="store_true", help="keep the scales, whatever int8 cuts off"
    )
    add_what_is_trained(train)
    add_plan(train)
    train.add_argument("--seed", type=whole(0, 2**64 - 1), default=0, help="default: 0")


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: _Command,
    summary: str,
    epilog: str = "",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help="default: %(default)s"
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _agent_help() -> str:
    lines = [
        "examples:",
        "  fedlearn agent --config device.toml --check-config",
        "  fedlearn agent --config device.toml",
        "",
        "the configuration file (TOML):",
    ]
    section = ""
    for each in keys():
        if each.section != section:
            section = each.section
            lines.append(f"  [{section}]")
        lines.append(f"  {each.name:<12} {each.doc} ({each.shown_default})")
    return "\n".join(lines)


def _agent(options: argparse.Namespace) -> int:
    from fedlearn.agent.trust import check_ca

    config = load_config(options.config)
    check_ca(config.aggregator.ca)
    if options.check_config:
        print(f"{options.config} is correct.\n{_meaning(config)}")
        return ExitCode.OK
    from fedlearn.agent.agent import Agent
    from fedlearn.agent.stop import StopSignal
    from fedlearn.notify import Notifier

    setup(options.log_level)
    notifier = Notifier.take()
    stop = StopSignal()
    stop.install()
    Agent(config, stop, notifier=notifier).run()
    return ExitCode.INTERRUPTED if stop.signal == signal.SIGINT else ExitCode.OK


def _meaning(config: Config) -> str:
    aggregator, kind = config.aggregator, config.source.kind
    where = ", ".join(aggregator.interfaces) or "all interfaces"
    trust = []
    if aggregator.ca or aggregator.url.startswith("https:"):
        trust.append(f"certified by {aggregator.ca or 'a CA of this system'}")
    if aggregator.insecure:
        trust.append("on a loopback address without TLS")
    try:
        config.data.check()
        shown = str(config.data.path)
    except DatasetError as error:
        shown = f"{error}; the agent waits for it"
    lines = [
        f"device      {config.device.name}, joins task {aggregator.task}",
        f"aggregator  {aggregator.url or f'found by mDNS on {where}'}, {' or '.join(trust)}",
        f"identity    {_identity(config)}",
        f"data        {shown}",
        *([f"sensor      {told(config.source, config.samples, config.ring)}"] * bool(kind)),
        f"training    {_cost(config.training)}",
        f"policy      {_limits(config.policy)}",
        f"state       {config.device.state_dir}",
        f"status      {config.device.runtime_dir}/status.json",
    ]
    return "\n".join(lines)


def _identity(config: Config) -> str:
    from fedlearn.agent.identity import Identity

    certificate = Identity(config.device.state_dir, config.device.name).certificate
    if certificate.exists():
        return f"the certificate {certificate}"
    if not config.aggregator.ca and not config.aggregator.url.startswith("https:"):
        return "none, and none is needed without TLS"
    try:
        config.aggregator.read_token()
    except ConfigError as error:
        return f"none: {error}"
    return f"enrols with the token in {config.aggregator.token}"


def _cost(training: TrainingConfig) -> str:
    parts = [
        counted(training.threads, "thread"),
        f"the trainer process ends {training.linger_s:g} s after a job",
    ]
    if training.memory_kib:
        parts.append(f"{training.memory_kib:,} KiB beside the program at most")
    if training.personal_epochs:
        parts.append(f"a copy of its own, {counted(training.personal_epochs, 'epoch')} further")
    return "; ".join(parts)


def _limits(policy: PolicyConfig) -> str:
    set_ = {name: value for name, value in asdict(policy).items() if value not in (None, False)}
    return ", ".join(f"{name} {value}" for name, value in set_.items()) or "no limits"


def _status(options: argparse.Namespace) -> int:
    from fedlearn.agent.status import describe, is_alive, read_status
    from fedlearn.collect import report

    config = load_config(options.config)
    collected = report.read(config.device.runtime_dir / report.FILE)
    try:
        status = read_status(config.device.runtime_dir / "status.json")
    except FedlearnError:
        if collected is not None and not options.json:  # it may run without an agent
            print(report.describe(collected))
        raise
    alive = is_alive(status)
    if options.json:
        collect = None if collected is None else {"alive": collected.alive, **asdict(collected)}
        print(json.dumps({"alive": alive, **asdict(status), "collect": collect}))
    else:
        print(describe(status))
        if collected is not None:
            print(report.describe(collected))
    return ExitCode.OK if alive else ExitCode.FAILURE


def _inspect(options: argparse.Namespace) -> int:
    from fedlearn.dataset import Dataset
    from fedlearn.inspect import inspect_model
    from fedlearn.trainer.local import read_model

    model = read_model(options.model)
    inputs = None
    if options.data is not None:
        inputs = Dataset.load_inputs(options.data, model)
    report = inspect_model(model, options.batch_size, inputs)
    print(json.dumps(report.to_json()) if options.json else report.to_text())
    return ExitCode.OK


def _evaluate(options: argparse.Namespace) -> int:
    from fedlearn.dataset import Dataset
    from fedlearn.evaluation import evaluate
    from fedlearn.trainer.local import read_model

    model = read_model(options.model)
    dataset = Dataset.load(options.data, model, options.loss)
    result = evaluate(model.data, dataset, options.threads, loss=options.loss)
    accuracy = "" if result.accuracy is None else f"accuracy {result.accuracy:.2%}, "
    text = f"{accuracy}loss {result.loss:.4f}, {result.samples} samples"
    print(json.dumps(asdict(result)) if options.json else text)
    return ExitCode.OK


def _score(options: argparse.Namespace) -> int:
    from fedlearn.anomaly import anomaly_scores, anomaly_threshold, require_autoencoder
    from fedlearn.dataset import Dataset
    from fedlearn.trainer.local import read_model

    model = read_model(options.model)
    require_autoencoder(model, options.model.name)
    scores = anomaly_scores(model, Dataset.load_inputs(options.data, model))
    normal = scores
    if options.normal is not None:
        normal = anomaly_scores(model, Dataset.load_inputs(options.normal, model))
    threshold = options.threshold or anomaly_threshold(normal, options.quantile)
    anomalies = [number for number, score in enumerate(scores) if score > threshold]
    if options.json:
        result = {"threshold": threshold, "scores": scores.tolist(), "anomalies": anomalies}
        print(json.dumps(result))
        return ExitCode.OK
    print(
        f"threshold {threshold:.6g}, {len(anomalies)} of {counted(len(scores), 'sample')} above it"
    )
    for number in anomalies:
        print(f"  sample {number}: {scores[number]:.6g}")
    return ExitCode.OK


def _train(options: argparse.Namespace) -> int:
    from fedlearn.trainer.local import train_file

    plan = plan_of(options)
    shown = ""

    def show(what: str, done: float, remark: str) -> None:
        """A line for each thing that is done; the last one moves."""
        nonlocal shown
        end = "\n" if shown and shown != what else "\r"
        shown = what
        bar = "#" * round(20 * done)
        line = f"{end}[{bar:<20}] {done:4.0%}  {what}  {remark} "
        print(line, end="", file=sys.stderr, flush=True)

    result = train_file(
        options.model,
        options.data,
        options.out,
        plan,
        seed=options.seed,
        tail=options.tail,
        budget_kib=options.budget_kib,
        test_path=options.test,
        fixed_scales=options.fixed_scales,
        show=show if sys.stderr.isatty() else None,
    )
    if shown:
        print(file=sys.stderr)
    print(json.dumps(asdict(result)) if options.json else _trained(options.out, result))
    return ExitCode.OK


def _trained(out: Path, result: LocalResult) -> str:
    before, after = result.before, result.after
    accuracy = ""
    if before.accuracy is not None and after.accuracy is not None:
        accuracy = f"accuracy {before.accuracy:.2%} -> {after.accuracy:.2%}, "
    lines = [f"budget: {reason}" for reason in result.choice]
    lines.append(
        f"{out}: {accuracy}loss {before.loss:.4f} -> {after.loss:.4f}, measured on "
        f"{result.measured_on} ({counted(after.samples, 'sample')})"
    )
    early = ", stopped early" if result.stopped_early else ""
    best = f", the best is {result.best_epoch}" if result.best_epoch < result.epochs else ""
    lines.append(
        f"{counted(result.samples, 'sample')}, {counted(result.epochs, 'epoch')} in "
        f"{result.train_s:.1f} s{early}{best}, {counted(result.changed_weights, 'weight')} changed"
    )
    if result.rescaled:
        lines.append(
            f"{counted(result.rescaled, 'tensor')} got other scales, so that int8 cuts off less"
        )
    if result.unpinned:
        lines.append(f"another machine may train other bits: {result.unpinned}")
    if result.anomaly_threshold is not None:
        lines.append(
            f"anomaly threshold {result.anomaly_threshold:.6g}: "
            f"fedlearn model score {out} NPZ --threshold {result.anomaly_threshold:.6g}"
        )
    return "\n".join(lines)


def _version(options: argparse.Namespace) -> int:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"fedlearn": VERSION, "python": sys.version.split()[0]}
    packages = ("tflite-runtime", "ai-edge-litert", "numpy", "cbor2", "pyserial", "zeroconf")
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    shown = "\n".join(f"{name} {number}" for name, number in versions.items())
    print(json.dumps(versions) if options.json else shown)
    return ExitCode.OK
