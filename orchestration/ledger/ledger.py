"""The ledger of a run: what became of every trajectory, across any sequence of crashes.

    for number in ledger.pending(stop): ... # the groups to start
    lease = ledger.lease(number)            # sample group `number`
    ledger.acknowledge(lease, group)        # False: somebody else's was accepted; this one is not to be trained on
    ledger.begun_before(step)               # if it was begun before a crash, it takes the same groups again
    ledger.begin_step(step, groups)         # on disk before the learner sees them
    ... train, write a checkpoint, ledger.require_ownership(), rename it ...
    ledger.commit(step)

The promise: every prompt instance (a group's number) contributes to at most one committed optimizer step; every
trajectory acknowledged as durable is in exactly one committed step or carries a recorded reason for its discard,
across any sequence of process, actor, node and job crashes. Generation that was not acknowledged may be redone.

A group is acknowledged as durable once `acknowledge` has returned True and a later `sync`, `begin_step`, `commit`,
`rollback`, `finish` or `close` has returned. Step s takes policy version s - 1 to s. Which groups it trains on is
said when it is begun, for good: a step that is undone is redone with the same ones. It is committed with the first
checkpoint that is renamed at or after it; the checkpoint on disk is the truth, and `open` brings the ledger to it.

Not for several threads. Whatever syncs waits for the disk.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.messages import RolloutGroup
from orchestration.ledger.journal import Disk, Journal
from orchestration.ledger.records import (
    Acknowledged,
    Begun,
    Committed,
    Discarded,
    Finished,
    Noted,
    Opened,
    Record,
    Refused,
    RolledBack,
    pack,
    pack_group,
    unpack,
    unpack_group,
)
from orchestration.ledger.standing import Standing
from orchestration.run_folder import LEDGER_FOLDER

FENCES_PER_EPOCH = 2**32
"""So that a lease of an earlier driver is stale under a later one."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to deliver the group with this number, until a newer lease of it is given out."""

    number: int
    fence: int
    """Grows with every lease of a run."""


class Ledger:
    """The ledger, as the one process that drives the run keeps it."""

    def __init__(self, journal: Journal, *, groups_per_step: int, journals_groups: bool) -> None:
        self._journal = journal
        self._standing = Standing(groups_per_step)
        self._journals_groups = journals_groups
        self._leases: dict[int, int] = {}
        self._next_fence = journal.epoch * FENCES_PER_EPOCH

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        committed_step: int,
        groups_per_step: int,
        journals_groups: bool,
        disk: Disk | None = None,
    ) -> "Ledger":
        """The ledger of the run in this folder, brought to the newest whole checkpoint on disk (of
        `committed_step`; 0 if there is none). From here on no other process may write it.

        A first ledger of a run that is at some step already begins there. Raises `UserError` if the ledger is
        damaged or not of this checkpoint, `WorkerError` if another process takes over meanwhile.
        """
        journal = Journal.open(folder / LEDGER_FOLDER, disk=disk)
        ledger = cls(journal, groups_per_step=groups_per_step, journals_groups=journals_groups)
        for position, payload in journal.earlier():
            ledger._standing.apply(unpack(payload), position)
        ledger._bring_to(committed_step, folder)
        journal.sync()
        return ledger

    @property
    def committed_step(self) -> int:
        """The last step that is committed."""
        return self._standing.committed_step

    @property
    def num_refused(self) -> int:
        """Groups that were turned away since the run began."""
        return self._standing.num_refused

    def notes(self, kind: str) -> Sequence[Mapping[str, Any]]:
        """What was noted of this kind since the run began, oldest first."""
        return self._standing.notes.get(kind, ())

    def durable(self, number: int) -> RolloutGroup | None:
        """The group that was acknowledged under this number and is in no committed step: train on it instead of
        sampling one. Its prompts come without `columns`."""
        entry = self._standing.entries.get(number)
        if entry is None or self._standing.is_committed(number):
            return None
        record = unpack(self._journal.read(entry.position))
        assert isinstance(record, Acknowledged), record
        return unpack_group(record.group)

    def lease(self, number: int) -> Lease:
        """The right to deliver this group. An older one of the same number is stale from now on."""
        self._leases[number] = self._next_fence
        self._next_fence += 1
        return Lease(number, self._leases[number])

    def acknowledge(self, lease: Lease, group: RolloutGroup) -> bool:
        """Whether the group was accepted. If not, it is never to be trained on: the lease was stale, or its number
        has a group already (`durable`). A lease is good for one group."""
        assert self._journals_groups, "opened without groups"
        refusal = self._refusal(lease)
        if refusal is not None:
            self._write(Refused(number=lease.number, num_rollouts=len(group.rollouts), reason=refusal))
            return False
        del self._leases[lease.number]
        self._write(
            Acknowledged(number=lease.number, num_rollouts=len(group.rollouts), group=pack_group(group))
        )
        return True

    def discard(self, number: int, num_rollouts: int, reason: str) -> None:
        """Trajectories sampled under this number that will never be trained on, and were not acknowledged: their
        scores were all the same, their worker was lost. The number itself is as it was."""
        self._write(Discarded(number=number, num_rollouts=num_rollouts, reason=reason, acknowledged=False))

    def discard_durable(self, number: int, reason: str) -> None:
        """The group acknowledged under this number will never be trained on; another may be sampled. It is in no
        step that was begun."""
        assert not self._standing.is_begun(number), f"group {number} is in a step that was begun"
        num_rollouts = self._standing.entries[number].num_rollouts
        self._write(Discarded(number=number, num_rollouts=num_rollouts, reason=reason, acknowledged=True))

    def pending(self, stop: int) -> Iterator[int]:
        """The groups that the steps up to `stop` will be made of, in the order in which to start them: those of
        steps that were begun before a crash, then all that are in no step, the oldest first."""
        standing = self._standing
        begun = set(standing.homes)
        for step in range(standing.begun_step + 1, standing.highest_step + 1):
            yield from standing.manifests[step]
        numbers = range(standing.first_number, stop * standing.groups_per_step)
        yield from (number for number in numbers if number not in begun)

    def begun_before(self, step: int) -> tuple[int, ...]:
        """The numbers of the groups that the step was begun with before it was undone; none if it never was."""
        return self._standing.manifests.get(step, ())

    def begin_step(self, step: int, groups: Mapping[int, RolloutGroup]) -> None:
        """Record what the step trains on, by number and in order. Once it returns, all that was acknowledged and
        this are on disk.

        The groups are those that were acknowledged under these numbers, and in no step so far. Raises
        `AssertionError` if they are not or it is not the next step, `WorkerError` if the run was taken over.
        """
        assert step == self._standing.begun_step + 1, f"step {step} after step {self._standing.begun_step}"
        assert len(groups) == self._standing.groups_per_step, f"{len(groups)} groups for step {step}"
        numbers = tuple(groups)
        before = self.begun_before(step) or numbers
        assert numbers == before, (
            f"step {step}: was begun with groups {before} before, and now with {numbers}"
        )
        for number, group in groups.items():
            assert not self._standing.is_begun(number), f"step {step}: group {number} is in another step"
            assert not self._journals_groups or self._standing.is_acknowledged(number, group), (
                f"step {step}: group {number} ({group.group_id}) is not the one that was acknowledged"
            )
        self._write(Begun(step=step, numbers=numbers))
        self._journal.sync()

    def commit(self, step: int) -> None:
        """The checkpoint of this step was renamed: it and the steps before it are committed."""
        assert self._standing.committed_step < step <= self._standing.begun_step, (
            f"step {step} of {self._standing.begun_step}"
        )
        self._write(Committed(step=step))
        self._journal.sync()

    def rollback(self, step: int) -> None:
        """The learner went back to the checkpoint of this step: later steps are undone, their groups durable.

        Steps up to it are committed, if it died before the ledger heard of that checkpoint.
        """
        assert step <= self._standing.begun_step, f"back to step {step} from step {self._standing.begun_step}"
        if step > self._standing.committed_step:
            self._write(Committed(step=step))
        self._write(RolledBack(step=step))
        self._journal.sync()

    def finish(self, reason: str) -> None:
        """The run is over: what is in no committed step is discarded with this reason."""
        if self._standing.begun_step > self._standing.committed_step:
            self._write(RolledBack(step=self._standing.committed_step))
        for number in sorted(self._standing.entries):
            if not self._standing.is_committed(number):
                self.discard_durable(number, reason)
        self._write(Finished(reason=reason))
        self._journal.sync()

    def note(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Record something else, with the time: numbers, strings, and lists and maps of them."""
        self._write(Noted(kind=kind, fields=fields, time_s=time.time()))

    def sync(self) -> None:
        """Once it returns, all that was acknowledged is durable. Raises `WorkerError` if the run was taken over."""
        self._journal.sync()

    def require_ownership(self) -> None:
        """Call before a checkpoint is renamed. Raises `WorkerError` if another process has taken over the run."""
        self._journal.require_ownership()

    def close(self) -> None:
        """Sync, and let go of the file. The run may be gone on with."""
        self._journal.close()

    def _refusal(self, lease: Lease) -> str | None:
        if self._standing.is_committed(lease.number):
            return "committed already"
        if lease.number in self._standing.entries:
            return "acknowledged already"
        return "stale lease" if self._leases.get(lease.number) != lease.fence else None

    def _bring_to(self, committed_step: int, folder: Path) -> None:
        """Make the steps those of the checkpoint, whose rename comes before the ledger's record of it."""
        standing = self._standing
        # Undone by a driver that took over, and renamed after that by the one before: these did happen.
        redone = range(standing.begun_step + 1, committed_step + 1) if standing.opened else range(0)
        self._require_same_run(redone, committed_step, folder)
        self._write(
            Opened(
                committed_step=committed_step,
                groups_per_step=standing.groups_per_step,
                journals_groups=self._journals_groups,
                time_s=time.time(),
            )
        )
        for step in redone:
            self._write(Begun(step=step, numbers=standing.manifests[step]))
        if committed_step > standing.committed_step:
            self._write(Committed(step=committed_step))
        if committed_step < standing.begun_step:
            self._write(RolledBack(step=committed_step))

    def _require_same_run(self, redone: Sequence[int], committed_step: int, folder: Path) -> None:
        standing = self._standing
        if standing.opened and standing.opened.groups_per_step != standing.groups_per_step:
            raise UserError(
                f"{folder}: its ledger counts {standing.opened.groups_per_step} groups a step; set "
                f"trainer.prompts_per_step to that, not to {standing.groups_per_step}"
            )
        if redone and committed_step > standing.highest_step:
            raise UserError(
                f"{folder}: its checkpoint is of step {committed_step}, and its ledger knows only up to step "
                f"{standing.highest_step} what was trained on. Bring back the ledger, or an older checkpoint."
            )

    def _write(self, record: Record) -> None:
        self._standing.apply(record, self._journal.append(pack(record)))
