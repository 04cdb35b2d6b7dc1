"""The books of an audit: every group by where it was acknowledged, every step by its manifest.

Made from the records alone, in their order. A record that breaks the promise of the ledger becomes a sentence in
`violations`, and the books go on.
"""

from collections import Counter
from dataclasses import dataclass

from orchestration.ledger.records import (
    Acknowledged,
    Begun,
    Committed,
    Discarded,
    Finished,
    Opened,
    Record,
    Refused,
    RolledBack,
)
from orchestration.ledger.segments import Position


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a group."""

    name: str
    """"committed", "pending" or "discarded"."""
    step: int | None = None
    """In which it is committed."""
    reason: str | None = None
    """For which it was discarded."""


class Books:
    """Entered record by record."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.num_rollouts: dict[Position, int] = {}
        """Of every group that was acknowledged, by its record."""
        self.unacknowledged: Counter[str] = Counter()
        """Trajectories that were discarded without that, by reason."""
        self.refused_groups: Counter[str] = Counter()
        self.refused_rollouts: Counter[str] = Counter()
        self.first_step = 1
        self.committed_step = 0
        self.num_rolled_back = 0
        self.finished: str | None = None
        self._opened: Opened | None = None
        self._latest: dict[int, Position] = {}
        """The record of the group that was acknowledged last under a number."""
        self._reasons: dict[Position, str] = {}
        """Why a group was discarded."""
        self._manifests: dict[int, dict[int, Position | None]] = {}
        """Of every step that was begun and not undone: its numbers, and the record that each had then."""
        self._homes: dict[int, tuple[int, Position | None]] = {}
        """By number, the committed step and the record of the group that it trained on."""
        self._undone: dict[int, dict[int, Position | None]] = {}
        """Manifests of steps that were undone: they are to be begun with the same groups again."""

    def enter(self, record: Record, position: Position) -> None:
        """Enter the next record."""
        match record:
            case Opened():
                self._open(record)
            case Acknowledged():
                self._acknowledge(record.number, record.num_rollouts, position)
            case Refused():
                self.refused_groups[record.reason] += 1
                self.refused_rollouts[record.reason] += record.num_rollouts
            case Discarded(acknowledged=True):
                self._discard(record.number, record.reason)
            case Discarded():
                self.unacknowledged[record.reason] += record.num_rollouts
            case Begun():
                self._begin(record.step, record.numbers)
            case Committed():
                self._commit(record.step)
            case RolledBack():
                self._roll_back(record.step)
            case Finished():
                self._finish(record.reason)

    def fates(self) -> dict[Position, Fate]:
        """What became of every group that was acknowledged, by its record."""
        fates = {position: Fate("pending") for position in self.num_rollouts}
        for step, position in self._homes.values():
            if position is not None:
                fates[position] = Fate("committed", step=step)
        for position, reason in self._reasons.items():
            fates[position] = Fate("discarded", reason=reason)
        return fates

    def trained_on(self) -> list[Position | None]:
        """The records of the groups of all committed steps, in the order in which they were trained on."""
        steps = range(self.first_step, self.committed_step + 1)
        return [position for step in steps for position in self._manifests.get(step, {}).values()]

    def num_overtaken(self) -> int:
        """Groups that are in no committed step, although one that was started later is."""
        size = self._opened.groups_per_step if self._opened else 0
        first = (self.first_step - 1) * size
        return max(0, max(self._homes, default=-1) + 1 - first - len(self._homes))

    def _open(self, record: Opened) -> None:
        if self._opened is None:
            self.committed_step = record.committed_step
            self.first_step = record.committed_step + 1
        self._opened = record
        self.finished = None

    def _acknowledge(self, number: int, num_rollouts: int, position: Position) -> None:
        before = self._latest.get(number)
        if before is not None and before not in self._reasons:
            self._violate(f"group {number} was acknowledged twice")
        self._latest[number] = position
        self.num_rollouts[position] = num_rollouts

    def _discard(self, number: int, reason: str) -> None:
        position = self._latest.get(number)
        if position is None or position in self._reasons:
            self._violate(f"group {number} was discarded ({reason}) and is not acknowledged")
            return
        if number in self._homes:
            self._violate(
                f"group {number} is committed in step {self._homes[number][0]} and was discarded ({reason})"
            )
        self._reasons[position] = reason
        affected = [step for step, numbers in self._undone.items() if number in numbers]
        for step in [step for step in self._undone if step >= min(affected, default=step + 1)]:
            del self._undone[step]

    def _begin(self, step: int, numbers: tuple[int, ...]) -> None:
        last = max(self._manifests, default=self.committed_step)
        if step != last + 1:
            self._violate(f"step {step} was begun after step {last}")
        size = self._opened.groups_per_step if self._opened else 0
        if len(set(numbers)) != size or len(numbers) != size:
            self._violate(f"step {step} was begun with groups {list(numbers)}, and a step has {size}")
        before = self._undone.pop(step, None)
        if before is not None and tuple(before) != numbers:
            self._violate(f"step {step} was begun with groups {list(before)}, and then with {list(numbers)}")
        self._manifests[step] = {number: self._latest.get(number) for number in numbers}

    def _commit(self, step: int) -> None:
        if step <= self.committed_step:
            self._violate(f"step {step} was committed after step {self.committed_step}")
            return
        for each in range(self.committed_step + 1, step + 1):
            if each not in self._manifests:
                self._violate(f"step {each} was committed and never begun")
            for number, position in self._manifests.get(each, {}).items():
                self._commit_group(number, position, each)
        self.committed_step = step

    def _commit_group(self, number: int, position: Position | None, step: int) -> None:
        other, _ = self._homes.setdefault(number, (step, position))
        if other != step:
            self._violate(f"group {number} is committed in step {other} and in step {step}")
        if position is None:
            if self._opened is None or self._opened.journals_groups:
                self._violate(
                    f"group {number} is committed in step {step} and was not acknowledged before it was begun"
                )
        elif position in self._reasons:
            self._violate(
                f"group {number} is committed in step {step} and was discarded ({self._reasons[position]})"
            )

    def _roll_back(self, step: int) -> None:
        for undone in [begun for begun in self._manifests if begun > step]:
            self._undone[undone] = self._manifests.pop(undone)
            self.num_rolled_back += 1
        self._homes = {number: home for number, home in self._homes.items() if home[0] <= step}
        self.committed_step = min(self.committed_step, step)
        if step + 1 < self.first_step:
            self.first_step = step + 1
            self._undone.clear()

    def _finish(self, reason: str) -> None:
        self.finished = reason
        if self.num_overtaken():
            self._violate(
                f"the run is over ({reason}), and {self.num_overtaken()} groups were overtaken for good"
            )

    def _violate(self, sentence: str) -> None:
        self.violations.append(sentence)
