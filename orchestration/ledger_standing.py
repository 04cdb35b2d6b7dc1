"""How a run stands after a row of ledger records: which steps count, and which groups wait for theirs.

Plain state. The ledger feeds it the records of earlier drivers first, then its own, one by one.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.messages import RolloutGroup
from orchestration.journal_records import (
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
from orchestration.journal_segments import Position


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
    committed_step: int = 0
    begun_step: int = 0
    """The last of the steps in a row that were begun and not undone."""
    highest_step: int = 0
    """The last that was ever begun, of those whose groups are all still there."""
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
                    self.committed_step = self.begun_step = self.highest_step = record.committed_step
                self.opened = record
            case Acknowledged():
                checksum = zlib.crc32(record.group)
                self.entries[record.number] = Entry(position, record.num_rollouts, checksum)
            case Refused():
                self.num_refused += 1
            case Discarded(acknowledged=True):
                del self.entries[record.number]
                self.highest_step = min(self.highest_step, self.step_of(record.number) - 1)
            case Begun():
                self.begun_step = record.step
                self.highest_step = max(self.highest_step, record.step)
            case Committed():
                self.committed_step = record.step
            case Noted():
                self.notes.setdefault(record.kind, []).append(record.fields)
            case RolledBack():
                self.begun_step = record.step
                self.committed_step = min(self.committed_step, record.step)

    def step_of(self, number: int) -> int:
        """The step that trains on the group with this number."""
        return number // self.groups_per_step + 1

    def numbers_of(self, step: int) -> tuple[int, ...]:
        """The groups that this step trains on, in order."""
        return tuple(range((step - 1) * self.groups_per_step, step * self.groups_per_step))

    def is_committed(self, number: int) -> bool:
        return self.step_of(number) <= self.committed_step

    def is_acknowledged(self, number: int, group: RolloutGroup) -> bool:
        """Whether it is this very group that was acknowledged under the number."""
        entry = self.entries.get(number)
        return entry is not None and entry.checksum == zlib.crc32(pack_group(group))
