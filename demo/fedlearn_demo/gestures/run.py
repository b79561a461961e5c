# SPDX-License-Identifier: Apache-2.0
"""One run of the gestures demo, from an empty folder to the report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fedlearn.collect import report as collecting
from fedlearn_demo.display import make_display
from fedlearn_demo.gestures import measure, people, watch
from fedlearn_demo.gestures.fleet import MODEL_PATH, Fleet, Person
from fedlearn_demo.gestures.follow import Stage
from fedlearn_demo.gestures.measure import Choice
from fedlearn_demo.gestures.people import Windows
from fedlearn_demo.gestures.picture import save_picture
from fedlearn_demo.gestures.report import Report, make_report
from fedlearn_demo.gestures.settings import Settings
from fedlearn_demo.gestures.watch import Recording
from fedlearn_demo.process import Nursery
from fedlearn_demo.rounds import Round
from fedlearn_demo.workspace import Workspace


def run(settings: Settings, out: Path, console: Console) -> Report:
    """Run the demo; returns the report, which is on disk by then.

    Raises FedlearnError when something fails. No process is left behind in any case.
    """
    recordings = watch.load(watch.find())
    began = time.monotonic()
    with Workspace(out) as workspace, Nursery() as nursery:
        fleet = Fleet(settings, workspace.root, recordings)
        title = f"Gestures: {len(fleet.people)} devices, one a person, collect from their sensors"
        with make_display(console, title, 0) as display:
            stage = Stage(nursery, display, lambda: "")
            replayed = time.monotonic()
            fleet.start_collecting(nursery)
            _collect(fleet, stage)
            replay_s = time.monotonic() - replayed
            display.say(f"all windows are as they were sent ({replay_s:.0f} s)")
            own = _alone(fleet, settings, stage, workspace.root)
        rss_bytes = max(_rss_bytes(each) for each in fleet.people)
        choices: list[Choice] = []
        rounds: list[Round] = []
        for number in range(1, len(settings.choices) + 1):
            made, closed = _Federation(settings, fleet, recordings, number, own).run(console)
            choices.append(made)
            rounds += closed
        made_report = make_report(
            settings,
            choices,
            rounds,
            windows=[each.expected for each in fleet.people],
            rss_bytes=rss_bytes,
            replay_s=replay_s,
            wall_s=time.monotonic() - began,
        )
        made_report.save(workspace.report)
        save_picture(workspace.root / "gestures.png", made_report)
    return made_report


def _collect(fleet: Fleet, stage: Stage) -> None:
    wanted = sum(each.expected for each in fleet.people)

    def progress() -> tuple[bool, int]:
        got = sum(each.collected() for each in fleet.people)
        stage.doing = f"{got:,} of {wanted:,} windows are on the devices' disks"
        return got >= wanted, got

    stage.wait(progress)
    fleet.check()


def _alone(fleet: Fleet, settings: Settings, stage: Stage, root: Path) -> dict[int, Path]:
    """Each device's own model, of its own windows: the same for every choice of the held out."""
    made = {}
    for each in fleet.people:
        stage.doing = f"training {each.name} by itself"
        stage.show()
        made[each.number] = root / f"{each.name}-alone.tflite"
        measure.alone(MODEL_PATH, each.ring, made[each.number], settings)
    return made


def _rss_bytes(person: Person) -> int:
    status = collecting.read(person.folder / "run" / collecting.FILE)
    return 0 if status is None else status.rss_bytes


@dataclass(frozen=True, slots=True)
class _Federation:
    """The rounds of one choice of the held out, and what they are compared with."""

    settings: Settings
    fleet: Fleet
    recordings: Sequence[Recording]
    number: int
    own: dict[int, Path]

    def run(self, console: Console) -> tuple[Choice, Sequence[Round]]:
        settings, fleet, number = self.settings, self.fleet, self.number
        held = settings.choices[number - 1]
        seen = [each for each in fleet.people if each.number not in held]
        unseen = Windows.join([people.whole(self._of(person)) for person in held])
        title = (
            f"Gestures, choice {number} of {len(settings.choices)}: {len(seen)} devices, people "
            f"{held[0]} and {held[1]} are held out ({len(unseen)} windows)"
        )
        with make_display(console, title, settings.rounds) as display, Nursery() as nursery:
            stage = Stage(nursery, display, lambda: _complaint(seen))
            aggregator = fleet.start_aggregator(nursery, number, unseen)
            fleet.start_agents(nursery, number, seen)
            stage.follow(aggregator, settings.rounds)
            final = fleet.folder(number) / "gestures-final.tflite"
            fleet.aggregator(number, "export", str(final))
            nursery.close()
            stage.doing = "float32 for comparison"
            shards = [people.trained(self._of(each.number)).real() for each in seen]
            by_round = measure.float32(MODEL_PATH, shards, unseen.real(), settings, stage.show)
            stage.doing = "measuring"
            stage.show()
            choice = self._measured(final, seen, unseen, stage.rounds, by_round)
        return choice, stage.rounds

    def _measured(
        self,
        final: Path,
        seen: Sequence[Person],
        unseen: Windows,
        rounds: Sequence[Round],
        by_round: tuple[float, ...],
    ) -> Choice:
        later = [people.judged(self._of(each.number)) for each in seen]
        personal = [each.personal(self.number) for each in seen]
        own = [self.own[each.number] for each in seen]
        alone = [measure.accuracy(model, unseen) for model in own]
        held = self.settings.choices[self.number - 1]
        few = [self._few(person, MODEL_PATH, "alone") for person in held]
        helped = [self._few(person, final, "personalised") for person in held]
        return Choice(
            held_out=held,
            global_heldout=measure.accuracy(final, unseen),
            float32_heldout=by_round[-1],
            alone_heldout=sum(alone) / len(alone),
            global_seen=measure.accuracy(final, Windows.join(later)),
            personalised_seen=measure.weighted(personal, later),
            alone_seen=measure.weighted(own, later),
            fewshot_personalised=sum(helped) / len(helped),
            fewshot_alone=sum(few) / len(few),
            global_by_round=tuple(each.accuracy for each in rounds),
            float32_by_round=by_round,
        )

    def _few(self, person: int, model: Path, name: str) -> float:
        learnt, rest = people.few(self._of(person), self.settings.few)
        out = self.fleet.folder(self.number) / f"person-{person:02}-{name}.tflite"
        measure.few(model, learnt, out, self.settings)
        return measure.accuracy(out, rest)

    def _of(self, person: int) -> list[Recording]:
        return people.of(self.recordings, person)


def _complaint(seen: Sequence[Person]) -> str:
    told = (f"{each.name}: {text}" for each in seen if (text := each.complaint()))
    return next(told, "the logs are in the output folder")
