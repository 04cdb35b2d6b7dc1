"""What the next driver of a run finds in its ledger, and what becomes of the one before."""

from pathlib import Path

import pytest

from core.errors import UserError, WorkerError
from orchestration.ledger.audit import audit
from orchestration.ledger.journal import Journal
from orchestration.ledger.records import Begun, Committed, RolledBack
from tests.ledger_fakes import CrashingDisk, acknowledged, fresh_group, holds, opened, stepped, steps


def test_a_lease_of_an_earlier_driver_is_stale(tmp_path: Path) -> None:
    lease = opened(tmp_path).lease(0)
    ledger = opened(tmp_path)
    assert not ledger.acknowledge(lease, fresh_group(0))
    assert ledger.lease(0).fence > lease.fence
    assert not ledger.acknowledge(lease, fresh_group(0))


def test_a_group_that_was_read_back_is_the_one_that_was_acknowledged(tmp_path: Path) -> None:
    acknowledged(opened(tmp_path), 0, 1)
    ledger = opened(tmp_path)
    groups = {number: ledger.durable(number) for number in (0, 1)}
    ledger.begin_step(1, {number: group for number, group in groups.items() if group is not None})


def test_a_crash_between_the_checkpoints_rename_and_the_commit_is_made_good(tmp_path: Path) -> None:
    stepped(opened(tmp_path), 1, 2, 3)
    ledger = opened(tmp_path, 2)
    assert ledger.committed_step == 2
    assert steps(tmp_path)[3:] == [Committed(step=2), RolledBack(step=2)]
    assert [ledger.durable(number) is None for number in range(6)] == [True] * 4 + [False] * 2
    again = {number: ledger.durable(number) for number in ledger.begun_before(3)}
    ledger.begin_step(3, {number: group for number, group in again.items() if group is not None})
    assert audit(tmp_path).violations == ()


def test_a_checkpoint_whose_rename_was_lost_takes_its_steps_along(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    groups = stepped(ledger, 1, 2)
    ledger.commit(1)
    ledger.commit(2)
    again = opened(tmp_path, 1)
    assert steps(tmp_path)[-1] == RolledBack(step=1)
    assert (again.committed_step, again.durable(1), holds(again, 2, groups[2])) == (1, None, True)
    assert audit(tmp_path).violations == ()


def test_what_is_said_of_steps_is_on_disk_when_it_is_said(tmp_path: Path) -> None:
    disk = CrashingDisk()

    def found() -> tuple[int, int, str | None]:
        disk.power_off(kept=0, zeros=False, forgets_names=True)
        on_disk = audit(tmp_path)
        return on_disk.last_step, on_disk.num_steps_rolled_back, on_disk.finished

    ledger = opened(tmp_path, disk=disk)
    stepped(ledger, 1, 2, 3, 4)
    ledger.commit(1)
    assert found() == (1, 0, None)
    ledger.rollback(3)
    assert found() == (3, 1, None)
    ledger = opened(tmp_path, 2, disk=disk)
    assert found() == (2, 2, None)
    ledger.finish("done")
    assert found() == (2, 2, "done")


def test_a_restart_at_the_journals_own_step_changes_nothing(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    stepped(ledger, 1)
    ledger.commit(1)
    before = steps(tmp_path)
    assert opened(tmp_path, 1).committed_step == 1
    assert steps(tmp_path) == before


def test_a_checkpoint_of_a_driver_that_had_been_replaced_counts(tmp_path: Path) -> None:
    """It was renamed after the next driver had looked for checkpoints, and rolled back."""
    groups = stepped(opened(tmp_path), 1, 2)
    second = opened(tmp_path)
    second.begin_step(1, dict(enumerate(groups[:2])))
    third = opened(tmp_path, 2)
    assert steps(tmp_path)[2:] == [
        RolledBack(step=0),
        Begun(step=1, numbers=(0, 1)),
        Begun(step=2, numbers=(2, 3)),
        Committed(step=2),
    ]
    assert [third.durable(number) for number in range(4)] == [None] * 4
    assert audit(tmp_path).violations == ()


def test_a_checkpoint_that_the_ledger_knows_nothing_of_is_refused(tmp_path: Path) -> None:
    groups = stepped(opened(tmp_path), 1, 2)
    with pytest.raises(
        UserError, match="checkpoint is of step 3, and its ledger knows only up to step 2 what"
    ):
        opened(tmp_path, 3)
    ledger = opened(tmp_path)
    ledger.begin_step(1, dict(enumerate(groups[:2])))
    ledger.discard_durable(3, "too old")
    acknowledged(ledger, 3)  # another group than the checkpoint's
    with pytest.raises(
        UserError, match="checkpoint is of step 2, and its ledger knows only up to step 1 what"
    ):
        opened(tmp_path, 2)
    assert opened(tmp_path, 1).committed_step == 1


def test_a_ledger_may_begin_in_the_middle_of_a_run(tmp_path: Path) -> None:
    ledger = opened(tmp_path, 10)
    assert not ledger.acknowledge(ledger.lease(19), fresh_group(19))
    stepped(ledger, 11)
    ledger.commit(11)
    found = audit(tmp_path)
    assert (found.first_step, found.last_step, found.num_steps_committed) == (11, 11, 1)
    assert found.violations == ()
    opened(tmp_path, 11)


def test_steps_of_another_size_are_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(
        UserError, match="counts 2 groups a step; set trainer.prompts_per_step to that, not to 3"
    ):
        opened(tmp_path, groups_per_step=3)


def test_a_driver_that_was_replaced_is_told_so_before_it_trains_or_renames(tmp_path: Path) -> None:
    zombie = opened(tmp_path)
    groups = stepped(zombie, 1)
    zombie.require_ownership()
    ledger = opened(tmp_path)
    with pytest.raises(WorkerError, match="taken over"):
        zombie.require_ownership()
    second = opened(tmp_path)
    with pytest.raises(WorkerError, match="taken over"):
        ledger.begin_step(1, dict(enumerate(groups)))
    assert holds(second, 0, groups[0])
    assert audit(tmp_path).num_zombie_frames == 1
    assert audit(tmp_path).violations == ()


def test_the_ledger_is_a_folder_of_the_run(tmp_path: Path) -> None:
    opened(tmp_path).close()
    Journal.open(tmp_path / "ledger").close()
    assert sorted(path.name for path in (tmp_path / "ledger").iterdir()) == ["000001.log", "000002.log"]
