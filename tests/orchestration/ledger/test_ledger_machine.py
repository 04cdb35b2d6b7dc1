"""The ledger against a model in memory, in any order of events that hypothesis can think of.

The model is a log of what was accepted and discarded, and how much of it is known to be on disk. After a crash the
ledger must stand as after some part of that log, from its start, that holds at least what is on disk. Steps take
groups in any order, and once they were begun the same ones again.
"""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.errors import WorkerError
from core.messages import RolloutGroup
from orchestration.ledger.audit import audit, exported_rows
from orchestration.ledger.ledger import Lease, Ledger
from orchestration.ledger.records import pack_group
from tests.ledger_fakes import CrashingDisk, fresh_group

GROUPS_PER_STEP = 2


class LedgerMachine(RuleBasedStateMachine):
    """A driver, its predecessors that live on, a learner with checkpoints, and a disk that forgets."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.disk = CrashingDisk()
        self.log: list[tuple[int, RolloutGroup | None]] = []
        """Number and group that was accepted; None instead if it was discarded."""
        self.num_durable = 0
        """Entries of the log that are on disk for sure."""
        self.begun: list[tuple[int, int, tuple[int, ...]]] = []
        """Length of the log, step, and the numbers of its groups: always on disk."""
        self.begun_step = 0
        self.checkpoints = [0]
        """The step of the newest one, and before it, if a crash of the machine can lose that, the one it falls
        back to."""
        self.trained: dict[int, RolloutGroup] = {}
        """By number: what the learner's present state was trained on."""
        self.leases: list[Lease] = []
        self.newest: dict[int, Lease] = {}
        self.zombies: list[Ledger] = []
        self.num_events = 0
        """Since the present driver came."""
        self.ledger = self._open()

    def teardown(self) -> None:
        while self._has_overtaken():  # else the slow ones would never be trained on
            self.begin_step(num_overtaken=0)
            self.save_checkpoint(dies=False, may_be_lost=False)
        self.ledger.finish("over")
        self._check_audit()
        found = audit(self.folder)
        assert found.pending.groups == 0
        discarded = sum(tally.trajectories for tally in found.discarded.values())
        assert found.sampled.trajectories == found.committed.trajectories + discarded
        self.disk.restart()
        shutil.rmtree(self.folder)

    # What a run does.

    @initialize(num_steps=st.integers(0, 3), num_ahead=st.integers(0, 3))
    def start(self, num_steps: int, num_ahead: int) -> None:
        for _ in range(num_steps):
            self.begin_step(num_overtaken=1)
        for ahead in range(num_ahead):
            self.lease(ahead)
            self.deliver(0)

    @rule(ahead=st.integers(0, 5))
    def lease(self, ahead: int) -> None:
        number = self._free_numbers()[ahead]
        self.newest[number] = self.ledger.lease(number)
        self.leases.append(self.newest[number])

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 10**6))
    def deliver(self, which: int) -> None:
        """By any lease that was ever given out, of this driver or an earlier one."""
        lease = self.leases[-1 - which % len(self.leases)]
        is_welcome = self.newest.get(lease.number) == lease and lease.number not in self._accepted()
        group = fresh_group(lease.number)
        assert self.ledger.acknowledge(lease, group) == is_welcome
        if is_welcome:
            del self.newest[lease.number]  # good for one delivery
            self.log.append((lease.number, group))

    @rule(num_overtaken=st.integers(0, 3))
    def sample_step(self, num_overtaken: int) -> None:
        """All that the next step still lacks."""
        for number in self._next_numbers(num_overtaken):
            if number not in self._accepted():
                group = fresh_group(number)
                self.newest.pop(number, None)
                assert self.ledger.acknowledge(self.ledger.lease(number), group)
                self.log.append((number, group))

    @rule(ahead=st.integers(0, 5))
    def discard(self, ahead: int) -> None:
        number = self._free_numbers()[ahead]
        self.ledger.discard(number, 3, "no spread")
        if number in self._accepted():
            self.ledger.discard_durable(number, "too old")
            self.log.append((number, None))

    @precondition(lambda self: self.num_durable < len(self.log))
    @rule()
    def sync(self) -> None:
        self.ledger.sync()
        self.num_durable = len(self.log)

    @rule(num_overtaken=st.integers(0, 3))
    def begin_step(self, num_overtaken: int) -> None:
        """With the oldest groups but for those overtaken; with the same ones again, if it was begun before."""
        self.sample_step(num_overtaken)
        groups = {number: self.ledger.durable(number) for number in self._next_numbers(num_overtaken)}
        present = {number: group for number, group in groups.items() if group is not None}
        self.ledger.begin_step(self.begun_step + 1, present)
        self.trained |= present
        self.begun_step += 1
        self.begun.append((len(self.log), self.begun_step, tuple(groups)))
        self.num_durable = len(self.log)

    @precondition(lambda self: self.begun_step > self.checkpoints[-1])
    @rule(dies=st.booleans(), may_be_lost=st.booleans())
    def save_checkpoint(self, dies: bool, may_be_lost: bool) -> None:
        """The process may die before the ledger hears of it; a machine that dies may forget the rename."""
        self.checkpoints = [*self.checkpoints[-1:] * may_be_lost, self.begun_step]
        if dies:
            self._restart()
        else:
            self.ledger.commit(self.begun_step)
            self.num_durable = len(self.log)

    @precondition(lambda self: self.begun_step > self.checkpoints[-1])
    @rule()
    def roll_back(self) -> None:
        """The learner died, and went back to its checkpoint."""
        self.ledger.rollback(self.checkpoints[-1])
        self._learner_goes_back()
        self.num_durable = len(self.log)

    # What befalls it.

    @precondition(lambda self: self.num_events > 1)
    @rule(lives_on=st.booleans())
    def another_takes_over(self, lives_on: bool) -> None:
        """As its process died, or was taken for dead."""
        self.zombies += [self.ledger] * lives_on
        self._restart()

    @precondition(lambda self: self.num_events > 1)
    @rule(kept=st.floats(0, 1), zeros=st.booleans(), forgets_names=st.booleans())
    def machine_dies(self, kept: float, zeros: bool, forgets_names: bool) -> None:
        self.disk.power_off(kept=kept, zeros=zeros, forgets_names=forgets_names)
        del self.checkpoints[1:]
        self.zombies.clear()
        self._restart(at_least=self.num_durable)

    @precondition(lambda self: self.zombies)
    @rule(ahead=st.integers(0, 5), notices=st.booleans())
    def zombie_writes(self, ahead: int, notices: bool) -> None:
        zombie = self.zombies[-1]
        zombie.acknowledge(zombie.lease(self._free_numbers()[ahead]), fresh_group(0))
        if notices:
            with pytest.raises(WorkerError):
                zombie.sync()
            self.zombies.pop()

    @invariant()
    def the_ledger_holds_what_it_accepted(self) -> None:
        self.num_events += 1
        assert self._is_standing(self._accepted())

    @invariant()
    def whoever_goes_on_knows_which_groups_to_start(self) -> None:
        manifests = self._manifests()
        again = [n for step in sorted(manifests) if step > self.begun_step for n in manifests[step]]
        stop = self.begun_step + 3
        in_a_step = {number for numbers in manifests.values() for number in numbers}
        others = [number for number in range(stop * GROUPS_PER_STEP) if number not in in_a_step]
        assert list(self.ledger.pending(stop)) == again + others
        assert self.ledger.begun_before(self.begun_step + 1) == manifests.get(self.begun_step + 1, ())

    def _restart(self, at_least: int | None = None) -> None:
        """A new driver. It finds the whole log, or at least so many entries of it."""
        self.ledger = self._open()
        self.num_events = 0
        self.newest.clear()
        self._learner_goes_back()
        for length in range(len(self.log), (len(self.log) if at_least is None else at_least) - 1, -1):
            if self._is_standing(self._accepted(length)):
                del self.log[length:]
                break
        assert self._is_standing(self._accepted())
        self.num_durable = len(self.log)
        self._check_audit()

    def _open(self) -> Ledger:
        return Ledger.open(
            self.folder,
            committed_step=self.checkpoints[-1],
            groups_per_step=GROUPS_PER_STEP,
            journals_groups=True,
            disk=self.disk,
        )

    def _learner_goes_back(self) -> None:
        self.begun_step = self.checkpoints[-1]
        kept = self._numbers_until(self.begun_step)
        self.trained = {number: group for number, group in self.trained.items() if number in kept}

    def _manifests(self) -> dict[int, tuple[int, ...]]:
        """The groups of every step that was begun and can be redone: none of them was discarded since."""
        manifests: dict[int, tuple[int, ...]] = {}
        begun = list(self.begun)
        for length in range(len(self.log) + 1):
            while begun and begun[0][0] == length:
                _, step, numbers = begun.pop(0)
                if manifests.get(step) != numbers:
                    manifests = {known: manifests[known] for known in manifests if known < step}
                manifests[step] = numbers
            if length < len(self.log) and self.log[length][1] is None:
                broken = [step for step in manifests if self.log[length][0] in manifests[step]]
                manifests = {step: manifests[step] for step in manifests if step < min(broken, default=10**9)}
        return manifests

    def _numbers_until(self, step: int) -> set[int]:
        """The groups of the steps up to this one."""
        manifests = self._manifests()
        return {number for known in manifests if known <= step for number in manifests[known]}

    def _free_numbers(self) -> list[int]:
        """The oldest that are in no step that was begun, some of them in one that was undone."""
        taken = self._numbers_until(self.begun_step)
        return [number for number in range(len(taken) + 10) if number not in taken][:10]

    def _next_numbers(self, num_overtaken: int) -> tuple[int, ...]:
        manifests = self._manifests()
        in_a_step = {number for numbers in manifests.values() for number in numbers}
        free = [number for number in range(len(in_a_step) + 10) if number not in in_a_step]
        chosen = tuple(free[num_overtaken : num_overtaken + GROUPS_PER_STEP])
        return manifests.get(self.begun_step + 1, chosen)

    def _has_overtaken(self) -> bool:
        """Whether a group is in no committed step although one with a larger number is."""
        committed = self._numbers_until(self.checkpoints[-1])
        return committed != set(range(len(committed)))

    def _accepted(self, length: int | None = None) -> dict[int, RolloutGroup]:
        """After so many entries of the log."""
        last = dict(self.log[:length])
        return {number: group for number, group in last.items() if group is not None}

    def _is_standing(self, accepted: dict[int, RolloutGroup]) -> bool:
        """Whether the ledger holds these groups and no others, but for the committed ones."""
        committed = self._numbers_until(self.checkpoints[-1])
        for number in range((max((number for number, _ in self.log), default=0)) + 2):
            expected = None if number in committed else accepted.get(number)
            found = self.ledger.durable(number)
            if (found and pack_group(found)) != (expected and pack_group(expected)):
                return False
        return True

    def _check_audit(self) -> None:
        found = audit(self.folder)
        assert found.violations == ()
        assert found.last_step == self.ledger.committed_step == self.checkpoints[-1]
        rows = [row for row in exported_rows(self.folder) if row["fate"] == "committed"]
        committed = self._numbers_until(self.checkpoints[-1])
        assert sorted((row["number"], row["score"]) for row in rows) == sorted(
            (number, rollout.score) for number in committed for rollout in self.trained[number].rollouts
        )


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(deadline=None, max_examples=40, stateful_step_count=30)
