"""How a run stands after a row of ledger records: which steps count, and which groups wait for theirs.

Plain state. The ledger feeds it the records of earlier drivers first, then its own, one by one.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.messages import RolloutGroup
from orchestration.ledger.records import (
    Acknowledged,
    Begun,
    Committed,
    Discarded,
    Noted,
    Opened,
    Record,
    Refused,
    RolledBack,
    pack_group,
)
from orchestration.ledger.segments import Position


@dataclass(frozen=True, slots=True)
class Entry:
    """A group that was acknowledged and not discarded. It stays on disk."""

    position: Position
    num_rollouts: int
    checksum: int
    """crc32 of the packed group."""


@dataclass(slots=True)
class Standing:
    """The state. Committed groups are kept too: a machine that dies may lose the checkpoint's rename."""

    groups_per_step: int
    entries: dict[int, Entry] = field(default_factory=dict)
    """By number."""
    manifests: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """By step: the numbers of its groups. Kept when a step is undone: it is to be redone with the same ones."""
    homes: dict[int, int] = field(default_factory=dict)
    """By number: the step that it is in the manifest of."""
    first_step: int = 1
    """Of those that the ledger knows of; those before it trained on the first numbers."""
    committed_step: int = 0
    begun_step: int = 0
    """The last of the steps in a row that were begun and not undone."""
    opened: Opened | None = None
    """By whom last."""
    num_refused: int = 0
    """Groups that were turned away."""
    notes: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    """By kind."""

    def apply(self, record: Record, position: Position) -> None:
        """What this record, which stands there, changes."""
        match record:
            case Opened():
                if self.opened is None:
                    self.committed_step = self.begun_step = record.committed_step
                    self.first_step = record.committed_step + 1
                self.opened = record
            case Acknowledged():
                checksum = zlib.crc32(record.group)
                self.entries[record.number] = Entry(position, record.num_rollouts, checksum)
            case Refused():
                self.num_refused += 1
            case Discarded(acknowledged=True):
                del self.entries[record.number]
                if record.number in self.homes:
                    self._forget_from(self.homes[record.number])
            case Begun():
                if self.manifests.get(record.step) != record.numbers:
                    self._forget_from(record.step)
                self.manifests[record.step] = record.numbers
                self.homes |= dict.fromkeys(record.numbers, record.step)
                self.begun_step = record.step
            case Committed():
                self.committed_step = record.step
            case Noted():
                self.notes.setdefault(record.kind, []).append(record.fields)
            case RolledBack():
                self.begun_step = record.step
                self.committed_step = min(self.committed_step, record.step)
                if record.step + 1 < self.first_step:  # what the steps in between trained on is not known
                    self.first_step = record.step + 1
                    self._forget_from(self.first_step)

    @property
    def highest_step(self) -> int:
        """The last that was ever begun, of those whose groups are all still there."""
        return max(self.manifests, default=self.first_step - 1)

    @property
    def first_number(self) -> int:
        """Of the groups that the ledger knows of."""
        return (self.first_step - 1) * self.groups_per_step

    def is_begun(self, number: int) -> bool:
        """Whether it is in a step that was begun and not undone."""
        return number < self.first_number or self.homes.get(number, self.begun_step + 1) <= self.begun_step

    def is_committed(self, number: int) -> bool:
        return (
            number < self.first_number or self.homes.get(number, self.begun_step + 1) <= self.committed_step
        )

    def is_acknowledged(self, number: int, group: RolloutGroup) -> bool:
        """Whether it is this very group that was acknowledged under the number."""
        entry = self.entries.get(number)
        return entry is not None and entry.checksum == zlib.crc32(pack_group(group))

    def _forget_from(self, step: int) -> None:
        """Steps that are undone, and that nobody can redo or wants to."""
        for later in [known for known in self.manifests if known >= step]:
            for number in self.manifests.pop(later):
                del self.homes[number]
