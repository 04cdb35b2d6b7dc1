"""The promise of the ledger, checked from disk alone: what became of every trajectory, and what broke the promise.

It keeps books of its own and shares with the ledger only how records are read. It writes nothing, so it may look at
a run that is under way.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.run_samples import rows_of
from core.errors import UserError
from orchestration.ledger.audit_books import Books
from orchestration.ledger.records import Acknowledged, Noted, unpack, unpack_group
from orchestration.ledger.segments import Position, Segment, leftovers_of, records_of, survey
from orchestration.run_folder import LEDGER_FOLDER


@dataclass(frozen=True, slots=True)
class Tally:
    """So many groups, and so many trajectories in them."""

    groups: int
    trajectories: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What the ledger of a run says. `sampled` is the sum of `committed`, `pending` and every `discarded`."""

    num_drivers: int
    """Processes that drove the run, one after the other."""
    first_step: int
    """1, or the step after the checkpoint at which the ledger began."""
    last_step: int
    """The last that is committed; `first_step - 1` if none is."""
    num_steps_rolled_back: int
    """Begun, and undone: lost with a crash, or by a learner that went back."""
    sampled: Tally
    """Acknowledged."""
    committed: Tally
    pending: Tally
    """Acknowledged, in no committed step, and the run may go on."""
    discarded: Mapping[str, Tally]
    """Acknowledged, and discarded; by reason."""
    unacknowledged: Mapping[str, int]
    """Trajectories discarded before they were acknowledged; by reason."""
    refused: Mapping[str, Tally]
    """Delivered a second time, or too late; by reason."""
    num_overtaken: int
    """Groups in no committed step although one that was started later is: they were slow."""
    num_zombie_frames: int
    """Records that a driver wrote after another had taken over. They do not count."""
    num_torn_bytes: int
    """Of records that a crash cut short. They do not count."""
    finished: str | None
    """Why the run is over; None if it may go on."""
    violations: tuple[str, ...]
    """What breaks the promise, a sentence each."""

    @property
    def num_steps_committed(self) -> int:
        return self.last_step - self.first_step + 1


def audit(folder: Path) -> Audit:
    """The audit of the run in this folder. Raises `UserError` if there is no ledger in it, or if it is damaged."""
    segments = _segments(folder)
    books = _books(segments)
    fates = books.fates()

    def tally(name: str, reason: str | None = None) -> Tally:
        sizes = [
            books.num_rollouts[position]
            for position, fate in fates.items()
            if fate.name == name and fate.reason == reason
        ]
        return Tally(len(sizes), sum(sizes))

    leftovers = [leftovers_of(segment) for segment in segments]
    reasons = sorted({fate.reason for fate in fates.values() if fate.reason is not None})
    return Audit(
        num_drivers=sum(segment.num_bytes > 0 for segment in segments),
        first_step=books.first_step,
        last_step=books.committed_step,
        num_steps_rolled_back=books.num_rolled_back,
        sampled=Tally(len(fates), sum(books.num_rollouts.values())),
        committed=tally("committed"),
        pending=tally("pending"),
        discarded={reason: tally("discarded", reason) for reason in reasons},
        unacknowledged=dict(books.unacknowledged),
        refused={
            reason: Tally(groups, books.refused_rollouts[reason])
            for reason, groups in books.refused_groups.items()
        },
        num_overtaken=books.num_overtaken(),
        num_zombie_frames=sum(left.num_frames for left in leftovers),
        num_torn_bytes=sum(left.num_bytes for left in leftovers),
        finished=books.finished,
        violations=tuple(books.violations),
    )


def audit_lines(found: Audit) -> list[str]:
    """The audit as text, line by line; violations last."""
    state = "may go on" if found.finished is None else f"is over: {found.finished}"
    return [
        f"the run {state}",
        f"{found.num_drivers} drivers, one after the other",
        f"{found.num_steps_committed} steps committed, {found.first_step} to {found.last_step}; "
        f"{found.num_steps_rolled_back} rolled back",
        f"sampled and acknowledged: {_words(found.sampled)}",
        f"  committed: {_words(found.committed)}",
        f"  pending: {_words(found.pending)}",
        *([f"overtaken so far: {found.num_overtaken} groups"] if found.num_overtaken else []),
        *(f"  discarded, {reason}: {_words(tally)}" for reason, tally in found.discarded.items()),
        *(
            f"discarded before they were acknowledged, {reason}: {number} trajectories"
            for reason, number in found.unacknowledged.items()
        ),
        *(f"refused, {reason}: {_words(tally)}" for reason, tally in found.refused.items()),
        f"ignored: {found.num_zombie_frames} records of drivers that had been replaced, "
        f"{found.num_torn_bytes} bytes cut short by crashes",
        *(f"violation: {violation}" for violation in found.violations),
        f"{len(found.violations)} violations" if found.violations else "no violation",
    ]


def exported_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """One row for each trajectory that was acknowledged, in that order: what was sampled, as in a run's samples,
    with its group's `number`, its `fate` ("committed", "pending", "discarded"), and the `step` in which it is
    committed or the `reason` for which it was discarded. Raises `UserError` as `audit` does."""
    segments = _segments(folder)
    fates = _books(segments).fates()
    for position, record in _records(segments):
        if isinstance(record, Acknowledged):
            fate = fates[position]
            for row in rows_of(unpack_group(record.group)):
                yield row | {
                    "number": record.number,
                    "fate": fate.name,
                    "step": fate.step,
                    "reason": fate.reason,
                }


def committed_groups(folder: Path) -> list[Position]:
    """Where the record of each group stands that was trained on in a committed step, in that order. Raises
    `UserError` as `audit` does."""
    return [position for position in _books(_segments(folder)).trained_on() if position is not None]


def notes(folder: Path, kind: str) -> list[Mapping[str, Any]]:
    """What the run's drivers noted of a kind, oldest first. Raises `UserError` as `audit` does."""
    records = (record for _, record in _records(_segments(folder)))
    return [record.fields for record in records if isinstance(record, Noted) and record.kind == kind]


def _segments(folder: Path) -> list[Segment]:
    segments = survey(folder / LEDGER_FOLDER)
    if not segments:
        raise UserError(f"{folder / LEDGER_FOLDER}: no ledger in it; give the folder of a run")
    return segments


def _records(segments: Iterable[Segment]) -> Iterator[tuple[Position, Any]]:
    for segment in segments:
        for position, payload in records_of(segment):
            yield position, unpack(payload)


def _books(segments: Iterable[Segment]) -> Books:
    books = Books()
    for position, record in _records(segments):
        books.enter(record, position)
    return books


def _words(tally: Tally) -> str:
    return f"{tally.groups} groups, {tally.trajectories} trajectories"
