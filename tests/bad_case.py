"""One malformed input: how it is made, how it is used, and what the one line about it has to name."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from bad_world import Outcome, World, copied

Damage = Callable[[World], Any]
Call = Callable[[World], Outcome]
CONFIG, SMALL = "config/config.yaml", "config/studies/small.yaml"
OWN_FILE, TINY = "config/datasets/own.yaml", "config/models/tiny.yaml"
RUN = "results/runs/tiny/own/lora-*"
BUILT = "results/models/tiny-*"
PREPARED = "results/data/own-*"


@dataclass(frozen=True)
class Case:
    """One malformed input."""

    area: str
    name: str
    damage: Damage
    call: Call
    says: tuple[str, ...]
    """What the line has to name: file, field, what to do."""
    results: bool = False
    """Whether it needs the finished study."""
    status: int = 1
    process: bool = False
    """Whether it goes by the real command line, in a process of its own."""
    foreign: bool = False
    """Whether Snakemake refuses it in its own words, which are several lines, before anything of ours is asked."""
    unprivileged: bool = False
    """Whether the command may write nothing: a user who owns none of the files."""


class Table:
    """The cases of one file."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def __call__(self, area: str, name: str, damage: Damage, call: Call, *says: str, **options: Any) -> None:
        """Add one."""
        self.cases.append(Case(area, name, damage, call, says, **options))


def changed(file: str, key: str, value: Any) -> Damage:
    return lambda w: w.change(file, key, value)


def written(file: str, content: str | bytes) -> Damage:
    return lambda w: w.write(file, content)


def cli(*arguments: str) -> Call:
    return lambda w: w.cli(*arguments)


def job(stage: str, **options: Any) -> Call:
    return lambda w: w.job(stage, **options)


def process(*command: str, **environment: str) -> Call:
    return lambda w: w.process(*command, **environment)


def nothing(w: World) -> None:
    """The input is what the command line says."""


LONGEST = 500
"""Characters of a line."""
RUNS = cli("runs", "small")


def each(*damages: Damage) -> Damage:
    def damage(w: World) -> None:
        for one in damages:
            one(w)

    return damage


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user who owns nothing: root may read and write everything, and then there is nothing to see."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


NOBODY = 65534
PATIENCE = 120
"""Seconds after which a command hangs."""


class Hangs(BaseException):
    """A command that does not end."""


def run(case: Case, template: World) -> tuple[Outcome, list[str]]:
    """Make the input, use it; what the command did, and what is not as it should be."""

    def hang(*_: Any) -> None:
        raise Hangs

    with copied(template, template.root.parent / "case", case.results) as world:
        case.damage(world)
        before = world.files()
        handler = signal.signal(signal.SIGALRM, hang)
        signal.alarm(PATIENCE)
        try:
            with unprivileged() if case.unprivileged else nullcontext():
                done = case.call(world)
        except Hangs:
            return Outcome(-1, "", ""), [f"it hangs for {PATIENCE} s"]
        except Exception:
            text = traceback.format_exc()
            return Outcome(-1, "", text), [f"a traceback: {text.splitlines()[-1]}"]
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, handler)
        problems = []
        if done.status != case.status:
            problems.append(f"status {done.status}")
        if "Traceback" in done.err + done.out:
            problems.append("a traceback")
        line = done.errors[0] if done.errors else ""
        if case.foreign:
            line = done.out + done.err
        elif len(done.errors) != 1:
            problems.append(f"{len(done.errors)} lines")
        problems += [f"{word!r} is not named" for word in case.says if word not in line]
        if len(line) > LONGEST and not case.foreign:
            problems.append(f"{len(line)} characters")
        left = sorted(name for name in world.files() - before if not world.is_whole(name))
        if left:
            problems.append(f"left behind: {', '.join(left)}")
        return done, problems
