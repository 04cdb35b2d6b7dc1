"""The commands that take the folder of a run: those that ask and steer it while it lives, and those that read the
ledger that it leaves."""

import argparse
import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from core.errors import UserError
from orchestration.command import AddCommand, Command
from orchestration.control.client import LiveRun, NotReachedError, how_to_go_on, last_known
from orchestration.printable import printable
from orchestration.recipe.live_settings import SETTABLE

Value = TypeVar("Value")
_WORKER_COLUMNS = ("name", "kind", "state", "version", "num_running", "restarts")
_DASH = "-"
"""For what the run does not say."""


def add_run_commands(add_command: AddCommand) -> None:
    """To the `leash` command."""

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        added = add_command(name, command, text)
        added.add_argument("folder", metavar="RUN", type=Path, help="folder of the run, such as runs/a")
        return added

    status = add("status", _status, "say what a run does now, or how far it came")
    status.add_argument("--json", action="store_true", help="as JSON, for scripts")
    scale = add("scale", _scale, "change how many workers of a kind a live run has")
    scale.add_argument(
        "sizes", metavar="KIND=NUMBER", nargs="+", help="rollout=2, reference=1, or reward-NAME=2"
    )
    add("pause", _pause, "let a live run stand still until it is resumed")
    add("resume", _resume, "let a paused run go on (one that has ended: leash train ... --resume)")
    change = add("set", _set, "change settings of a live run")
    change.add_argument(
        "settings",
        metavar="KEY=VALUE",
        nargs="+",
        help=f"such as kl_coef=0.05; what may change: {', '.join(SETTABLE)}",
    )
    add("verify", _verify, "check from the ledger on disk that no trajectory was lost or trained on twice")
    again = add("learn", _learn, "train the learner alone, on the rollouts that a run has journaled")
    again.add_argument("into", metavar="FOLDER", type=Path, help="a new folder, for what comes out")
    into = add("export", _export, "write every trajectory of the ledger, and what became of it, to a file")
    into.add_argument("file", metavar="FILE", type=Path, help="ends in .jsonl or .parquet")


def status_lines(folder: Path, status: Mapping[str, Any]) -> Iterator[str]:
    """The status of a live run, as `Controls.status` gives it, for people."""
    yield _headline(folder, status)
    workers = status.get("workers") or []
    if workers:
        rows = [[_cell(worker.get(column)) for column in _WORKER_COLUMNS] for worker in workers]
        header = ["worker", *(column.removeprefix("num_") for column in _WORKER_COLUMNS[1:])]
        yield from ["", *_columns([header, *rows])]
    settings = status.get("settings") or {}
    if settings:
        changed = status.get("changed") or {}
        rows = [[key, _cell(value), _cell(changed.get(key, ""))] for key, value in settings.items()]
        yield from ["", *_columns([["setting", "value", "set" if changed else ""], *rows])]
    events = status.get("events") or []
    if events:
        yield from ["", "latest events", *(f"  {_cell(event)}" for event in events)]


def _status(args: argparse.Namespace) -> None:
    folder: Path = args.folder
    try:
        status = LiveRun(folder).status()
        lines = list(status_lines(folder, status))
    except NotReachedError as error:
        status = last_known(folder, error.state)
        lines = [_last_known_line(folder, status)]
    print(json.dumps(status, indent=2) if args.json else "\n".join(lines))


def _scale(args: argparse.Namespace) -> None:
    sizes = _pairs(args.sizes, _number_of_workers, "KIND=NUMBER, such as rollout=2")
    _say(args.folder, LiveRun(args.folder).scale(sizes))


def _pause(args: argparse.Namespace) -> None:
    _say(args.folder, LiveRun(args.folder).pause())


def _resume(args: argparse.Namespace) -> None:
    _say(args.folder, LiveRun(args.folder).resume())


def _set(args: argparse.Namespace) -> None:
    settings = _pairs(args.settings, _some_text, "KEY=VALUE, such as kl_coef=0.05")
    _say(args.folder, LiveRun(args.folder).set(settings))


def _verify(args: argparse.Namespace) -> int:
    # Imports NumPy, which the commands above do without.
    from orchestration.ledger.audit import audit, audit_lines

    found = audit(args.folder)
    print("\n".join(audit_lines(found)))
    return 1 if found.violations else 0


def _learn(args: argparse.Namespace) -> None:
    # Imports torch and Ray, seconds that whoever only asks for help must not wait.
    from orchestration.replay import learn

    learn(args.folder, args.into)


def _export(args: argparse.Namespace) -> None:
    # Imports NumPy, as above.
    from orchestration.ledger.audit import exported_rows
    from orchestration.ledger.export import export

    num_rows = export(exported_rows(args.folder), args.file)
    print(f"{args.file}: {num_rows} trajectories")


def _say(folder: Path, status: Mapping[str, Any]) -> None:
    """In one line, what the run does after an order."""
    print(_headline(folder, status))


def _pairs(words: Sequence[str], parse: Callable[[str], Value], form: str) -> dict[str, Value]:
    """What each word gives a key. One `UserError` with a line for each word that is wrong."""
    pairs: dict[str, Value] = {}
    problems = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            problems.append(f"{word}: write {form}")
        elif key in pairs:
            problems.append(f"{word}: {key} is given twice; give it once")
        else:
            try:
                pairs[key] = parse(text)
            except ValueError as error:
                problems.append(f"{word}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    return pairs


def _number_of_workers(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("must be a number of workers, such as 2")
    return int(text)


def _some_text(text: str) -> str:
    if not text:
        raise ValueError("has no value after the equals sign; add one")
    return text


def _headline(folder: Path, status: Mapping[str, Any]) -> str:
    seconds = status.get("seconds")
    running_for = _DASH if seconds is None else str(datetime.timedelta(seconds=round(seconds)))
    return (
        f"{folder}: {_cell(status.get('state'))}, step {_cell(status.get('step'))} of "
        f"{_cell(status.get('steps'))}, policy version {_cell(status.get('policy_version'))}, for {running_for}"
    )


def _last_known_line(folder: Path, known: Mapping[str, Any]) -> str:
    may_live = known["state"].startswith("out of reach")
    came = "no step was finished"
    if known["step"] is not None:
        came = "was at" if may_live else "finished after" if known["finished"] else "stopped after"
        came += f" step {known['step']} of {_cell(known['steps'])}"
    line = f"{folder}: {known['state']}; {came}"
    if known["finished"]:
        return line
    saved = f"last checkpoint {known['checkpoint']}" if known["checkpoint"] else "no checkpoint"
    return f"{line}, {saved}; {'if it is dead, ' if may_live else ''}go on with: {how_to_go_on(folder)}"


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The rows with every column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cell(value: object) -> str:
    match value:
        case None:
            return _DASH
        case float():
            return f"{value:.6g}"
        case Mapping():
            return "  ".join(_cell(inner) for inner in value.values())
        case _:
            return printable(" ".join(str(value).split()))
