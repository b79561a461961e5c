# SPDX-License-Identifier: Apache-2.0
"""The `fedlearn-aggregator` command."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import secrets
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from fedlearn import command, log
from fedlearn.durable import storage_errors, write_durably
from fedlearn.errors import ConfigError, ExitCode
from fedlearn.model import Model
from fedlearn.notify import Notifier
from fedlearn.plan_arguments import plan_of
from fedlearn.text import clean, counted
from fedlearn.trainer.budget import choose
from fedlearn.trainer.local import read_model
from fedlearn.trainer.loss import make_loss
from fedlearn.trainer.tail import Tail
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.version import VERSION
from fedlearn.wire.messages import NAME as NAME_PATTERN
from fedlearn.wire.messages import Limits, Pattern
from fedlearn_aggregator import arguments, report, schema, store
from fedlearn_aggregator.begin import begin
from fedlearn_aggregator.identity.folder import NAME, Folder, ensure
from fedlearn_aggregator.identity.registry import DAY_S, Device
from fedlearn_aggregator.optimizers import OptimizerName, OptimizerSettings
from fedlearn_aggregator.report import RoundReport
from fedlearn_aggregator.requantise import grid_scales
from fedlearn_aggregator.robust import AggregationSettings
from fedlearn_aggregator.rounds import Policy
from fedlearn_aggregator.task import Task, largest_update

# Rounds that `status` shows.
_LAST_ROUNDS = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = arguments.parser().parse_args(argv)
    run = {
        "init": _init,
        "serve": _serve,
        "tokens": _tokens,
        "devices": _devices,
        "status": _status,
        "rounds": _rounds,
        "export": _export,
        "version": _version,
    }[options.command]
    return command.run("fedlearn-aggregator", lambda: run(options))


def _init(options: argparse.Namespace) -> int:
    model = read_model(options.model)
    task = _task(options, model)
    # What follows raises now what would stop every device, or the first round.
    loss = make_loss(task.plan.loss, model, task.plan.class_weights)
    Tail(model, [tensor.index for tensor in task.tensors], absorbed=loss.absorbed)
    if task.optimizer.in_real_units or task.aggregation.in_real_units:
        grid_scales(model, task.tensors)
    fleet = options.data_dir / NAME
    with storage_errors("write", options.data_dir):
        options.data_dir.mkdir(parents=True, exist_ok=True)
    ensure(fleet, time.time(), template=options.identity)
    moved = begin(options.data_dir, task, model, time.time(), force=options.force)
    if moved is not None:
        print(f"the old task is now {moved}")
    policy = task.policy
    print(f"task {task.name}: model {model.digest.hex()[:12]}, {len(model.data):,} bytes")
    print(f"trained: {task.parameters:,} parameters in {len(task.tensors)} tensors")
    for tensor in task.tensors:
        shape = "x".join(str(size) for size in tensor.shape)
        print(f"  {tensor.index:4}  {tensor.dtype:5}  {shape:>16}  {clean(tensor.name, 60)}")
    print(
        f"a round: {policy.cohort} updates, {policy.seats} seats, at least {policy.minimum} "
        f"within {policy.deadline_s:g} s; aggregation {task.aggregation.words}; "
        f"server optimiser {task.optimizer.name}"
    )
    _introduce(fleet, options)
    return ExitCode.OK


def _introduce(fleet: Path, options: argparse.Namespace) -> None:
    """Certify the server, make the first tokens, and say what the devices get."""
    count = options.cohort if options.tokens is None else options.tokens
    now = time.time()
    with closing(Folder.open(fleet)) as folder:
        folder.registry.add_server_names(options.server_name)
        folder.renew_server(now)
        expires = now + options.token_days * DAY_S
        tokens = folder.registry.add_tokens(count, expires, now)
    print("for the image, or the folder fedlearn/ of the boot partition of each device:")
    print(f"  ca.pem   {fleet / 'ca.pem'}")
    for token in tokens:
        print(f"  token    {token}")
    if tokens:
        print(f"each token enrols one device within {options.token_days:g} days, and is shown once")
    print(f"more: fedlearn-aggregator tokens --data-dir {options.data_dir}")


def _task(options: argparse.Namespace, model: Model) -> Task:
    plan = plan_of(options)
    if options.budget_kib is None:
        tensors = trainable_tensors(model, options.tail)
    else:
        choice = choose(model, plan, options.budget_kib, options.max_samples)
        tensors = choice.tensors
        print("\n".join(f"budget: {reason}" for reason in choice.reasons))
        print(f"budget: a device trains on --max-samples, {options.max_samples:,}, at most")
    cohort = options.cohort
    adam = options.optimizer is OptimizerName.FEDADAM
    rate = options.server_learning_rate
    return Task(
        name=options.task,
        instance=secrets.token_hex(4),
        tail=options.tail if options.budget_kib is None else f"{options.budget_kib} KiB",
        tensors=tensors,
        plan=plan,
        limits=Limits(largest_update(tensors), options.max_samples),
        policy=Policy(
            cohort=cohort,
            minimum=math.ceil(cohort / 2) if options.minimum is None else options.minimum,
            over_selection=options.over_selection,
            deadline_s=options.deadline_s,
            max_rounds=options.rounds,
            interval_s=options.round_interval_s,
        ),
        optimizer=OptimizerSettings(
            name=options.optimizer,
            learning_rate=(0.01 if adam else 1.0) if rate is None else rate,
            momentum=options.server_momentum,
            beta1=options.beta1,
            beta2=options.beta2,
            tau=options.tau,
        ),
        seed=secrets.randbits(64) if options.seed is None else options.seed,
        keep_models=options.keep_models,
        keep_updates=options.keep_updates,
        rescale=not options.fixed_scales,
        aggregation=AggregationSettings(
            rule=options.aggregation,
            hostile=options.hostile,
            clip=options.clip_update_norm,
            drop=options.drop_update_norm,
            max_norm=options.max_update_norm,
            mix=options.mix_nearest,
        ),
    )


def _serve(options: argparse.Namespace) -> int:
    # The other commands need no HTTP server and no zeroconf.
    from fedlearn_aggregator.serve import ServeOptions, serve  # noqa: PLC0415

    log.setup(options.log_level)
    serving = serve(
        ServeOptions(
            data_dir=options.data_dir,
            host=options.host or ("127.0.0.1" if options.insecure else "0.0.0.0"),  # noqa: S104
            port=options.port,
            insecure=options.insecure,
            interfaces=None if options.no_mdns else tuple(options.interface),
            evaluate=options.evaluate,
            exit_when_done=options.exit_when_done,
        ),
        announce=lambda url: print(f"listening on {url}", flush=True),
        notifier=Notifier.take(),
    )
    return asyncio.run(serving)


def _tokens(options: argparse.Namespace) -> int:
    if options.device is not None and not Pattern(NAME_PATTERN).allows(options.device):
        raise ConfigError(
            f"{options.device!r} is no device.name", hint=f"it matches {NAME_PATTERN}"
        )
    now = time.time()
    expires = now + options.days * DAY_S
    with closing(Folder.open(options.data_dir / NAME)) as folder:
        tokens = folder.registry.add_tokens(
            options.count, expires, now, uses=options.uses, device=options.device
        )
    if options.json:
        print(json.dumps([{"token": each, "expires": expires} for each in tokens], indent=2))
    else:
        print("\n".join(tokens))
    return ExitCode.OK


def _devices(options: argparse.Namespace) -> int:
    with closing(Folder.open(options.data_dir / NAME)) as folder:
        registry = folder.registry
        match options.action:
            case "name":
                registry.label(options.device, options.label)
            case "block" | "unblock":
                registry.block(options.device, blocked=options.action == "block")
            case "remove":
                registry.remove(options.device)
        devices = registry.devices()
        unused = registry.unused_tokens(time.time())
    if options.json:
        print(json.dumps([_device_json(each) for each in devices], indent=2))
    elif options.action in (None, "list"):
        _print_devices(devices)
        print(f"{counted(len(devices), 'device')}; {counted(unused, 'unused token')}")
    else:
        print(f"{options.device}: {_DONE[options.action]}")
    return ExitCode.OK


_DONE = {
    "name": "named",
    "block": "blocked",
    "unblock": "may take part again",
    "remove": "removed; it needs a new token to come back",
}


def _device_json(device: Device) -> dict[str, object]:
    return {**asdict(device), "key": device.key.hex()}


def _print_devices(devices: Sequence[Device]) -> None:
    width = max(6, *(len(each.name) for each in devices), 0)
    print(f"{'device':{width}}  state    enrolled    until       last seen         label")
    for each in devices:
        state = "blocked" if each.blocked else "enrolled"
        seen = "never" if each.seen is None else _when(each.seen, "%Y-%m-%d %H:%M")
        print(
            f"{each.name:{width}}  {state:8} {_when(each.enrolled)}  {_when(each.expires)}  "
            f"{seen:16}  {clean(each.label)}".rstrip()
        )


def _when(seconds: float, form: str = "%Y-%m-%d") -> str:
    return time.strftime(form, time.localtime(seconds))


def _status(options: argparse.Namespace) -> int:
    task = report.read(options.data_dir / schema.FILE_NAME, _LAST_ROUNDS)
    if options.json:
        print(json.dumps(task.to_json(), indent=2))
        return ExitCode.OK
    limit = f" of {task.max_rounds}" if task.max_rounds else ""
    print(f"task {task.task}, {task.state}: {task.rounds_closed}{limit} rounds closed")
    print(f"aggregation: {task.aggregation}")
    print(
        f"model {task.model} ({task.model_bytes:,} bytes, {task.parameters:,} trained parameters)"
    )
    _print_table(task.rounds)
    return ExitCode.OK


def _rounds(options: argparse.Namespace) -> int:
    task = report.read(options.data_dir / schema.FILE_NAME)
    if options.json:
        print(json.dumps([asdict(each) for each in task.rounds], indent=2))
    else:
        _print_table(task.rounds)
    return ExitCode.OK


def _print_table(rounds: Sequence[RoundReport]) -> None:
    print("round  state        updates  samples   kB up  kB down  seconds  accuracy    loss  model")
    for each in rounds:
        accuracy = "" if each.accuracy is None else f"{each.accuracy:.4f}"
        loss = "" if each.loss is None else f"{each.loss:.4f}"
        seconds = "" if each.wall_s is None else f"{each.wall_s:.1f}"
        print(
            f"{each.number:5}  {each.state:11}  {each.updates:7}  {each.samples:7}  "
            f"{each.bytes_up_total / 1000:6.1f}  {each.bytes_down_total / 1000:7.1f}  "
            f"{seconds:>7}  {accuracy:>8}  {loss:>6}  {(each.result or '')[:12]}"
        )


def _export(options: argparse.Namespace) -> int:
    path = options.data_dir / schema.FILE_NAME
    with closing(schema.open_reader(path)) as db:
        try:
            db.execute("BEGIN")
            data = _find_model(db, options.round)
        except sqlite3.Error as error:
            raise schema.storage_error(error, path) from error
    model = Model.parse(data)
    write_durably(options.output, data)
    print(f"{options.output}: {len(data):,} bytes, sha256 {model.digest.hex()}")
    return ExitCode.OK


def _find_model(db: sqlite3.Connection, number: int | None) -> bytes:
    rows = {row.number: row for row in store.load_rounds(db)}
    newest = rows[max(rows)]
    if number is None:
        digest = newest.result or newest.base
    elif number == 0 and 1 in rows:
        digest = rows[1].base
    elif number in rows and rows[number].closed is not None:
        digest = rows[number].result or rows[number].base
    else:
        raise ConfigError(
            f"round {number} has not ended or is no longer kept",
            hint="the rounds command shows which there are",
        )
    data = store.load_model(db, digest)
    if data is None:
        raise ConfigError(
            f"the model of round {number} is no longer kept",
            hint="init --keep-models sets how many are",
        )
    return data


def _version(options: argparse.Namespace) -> int:
    print(json.dumps({"version": VERSION}) if options.json else f"fedlearn-aggregator {VERSION}")
    return ExitCode.OK
