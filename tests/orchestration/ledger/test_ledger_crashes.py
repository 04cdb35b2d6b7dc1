"""The promise of the ledger, with a crash in every call that writes, one after the other.

A small run trains four steps with a checkpoint every second one. Its checkpoint holds the scores of all that it was
trained on, so that what the learner really saw is known without the ledger. Every other step overtakes a group.
"""

import json
from itertools import islice
from pathlib import Path

import pytest

from core.errors import WorkerError
from core.messages import RolloutGroup
from orchestration.ledger.audit import audit, exported_rows
from orchestration.ledger.ledger import Ledger
from tests.ledger_fakes import Crash, CrashingDisk, fresh_group

STEPS = 4
AHEAD = 1
"""Groups that are sampled beyond the step that trains."""


class SmallRun:
    """One driver after the other, and what outlives them: the disk."""

    def __init__(self, folder: Path, disk: CrashingDisk) -> None:
        self.folder = folder
        self.disk = disk
        self.durable: dict[int, float] = {}
        """Score of every group that a driver was told is durable."""
        self._accepted: dict[int, float] = {}

    def drive(self, *, replaced: bool = False) -> None:
        """A driver, to the end of the run. `replaced`: another one takes the run over, and it writes on."""
        self._accepted = {}
        trained = self.trained()
        ledger = self._open(len(trained) // 2)
        for step in range(len(trained) // 2 + 1, STEPS + 1):
            groups = self._groups(ledger, step)
            ledger.begin_step(step, groups)
            self.durable |= self._accepted
            trained += [(number, score_of(group)) for number, group in groups.items()]
            if step == 3 and replaced:
                self._replace(ledger)
                return
            if step % 2 == 0:
                ledger.require_ownership()
                self._checkpoint(step, trained)
                ledger.commit(step)
        ledger.finish("done")
        ledger.close()

    def trained(self) -> list[tuple[int, float]]:
        """Numbers and scores of what the newest checkpoint was trained on, in order."""
        found = sorted(self.folder.glob("step-[0-9].json"))
        return [(n, score) for n, score in json.loads(found[-1].read_text(encoding="utf-8"))] if found else []

    def _open(self, committed_step: int) -> Ledger:
        return Ledger.open(
            self.folder,
            committed_step=committed_step,
            groups_per_step=2,
            journals_groups=True,
            disk=self.disk,
        )

    def _groups(self, ledger: Ledger, step: int) -> dict[int, RolloutGroup]:
        """Those of the step, of which odd ones overtake a group; some are sampled ahead, some twice."""
        groups = {}
        for number in islice(ledger.pending(STEPS + 1), 2 + AHEAD):
            group = ledger.durable(number)
            if group is None:
                stale, lease, group = ledger.lease(number), ledger.lease(number), fresh_group(number)
                assert not ledger.acknowledge(stale, fresh_group(number))
                ledger.discard(number, 2, "no spread")
                assert ledger.acknowledge(lease, group)
            self._accepted[number] = score_of(group)
            groups[number] = group
        ledger.note("sampled", {"step": step})
        oldest = sorted(groups)
        taken = ledger.begun_before(step) or (oldest[1:] if step % 2 else oldest[:2])
        return {number: groups[number] for number in taken}

    def _checkpoint(self, step: int, trained: list[tuple[int, float]]) -> None:
        unfinished = self.folder / "step.unfinished"
        unfinished.write_text(json.dumps(trained), encoding="utf-8")
        self.disk.rename(unfinished, self.folder / f"step-{step}.json")

    def _replace(self, zombie: Ledger) -> None:
        second = self._open(len(self.trained()) // 2)
        assert zombie.acknowledge(zombie.lease(7), fresh_group(7))  # it does not know better
        with pytest.raises(WorkerError):
            zombie.sync()
        second.close()
        self.drive()


def score_of(group: RolloutGroup) -> float:
    return group.rollouts[0].score


def check(run: SmallRun) -> None:
    """The promise, of a run that reached its end."""
    found = audit(run.folder)
    assert found.violations == ()
    assert (found.last_step, found.finished) == (STEPS, "done")
    assert found.pending.groups == 0
    trained = dict(run.trained())
    assert list(trained)[:4] == [1, 2, 0, 3]
    assert len(trained) == len(set(trained.values())) == 2 * STEPS
    rows = [row for row in exported_rows(run.folder) if row["score"] == int(row["score"])]
    committed = {row["number"]: row["score"] for row in rows if row["fate"] == "committed"}
    discarded = {row["number"]: row["score"] for row in rows if row["fate"] == "discarded"}
    assert committed == trained
    assert {row["reason"] for row in rows if row["fate"] == "discarded"} <= {"done"}
    assert run.durable.items() <= (committed | discarded).items()


def test_the_run_itself_keeps_the_promise(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, CrashingDisk())
    run.drive(replaced=True)
    check(run)
    assert len(run.durable) == 2 * STEPS + 1  # one sampled ahead of the end
    found = audit(tmp_path)
    assert (found.num_drivers, found.num_zombie_frames, found.num_steps_rolled_back) == (3, 1, 1)


def num_calls(folder: Path) -> int:
    run = SmallRun(folder, CrashingDisk())
    run.drive(replaced=True)
    return run.disk.num_calls


@pytest.mark.parametrize(
    ("tears", "kept", "zeros", "forgets_names"),
    [
        pytest.param(True, None, False, False, id="process"),
        pytest.param(False, 0.0, False, True, id="machine"),
        pytest.param(True, 0.5, True, False, id="machine, half of it written"),
        pytest.param(False, 0.0, True, False, id="machine, holes in files"),
    ],
)
def test_the_promise_is_kept_wherever_the_run_dies(
    tmp_path: Path, tears: bool, kept: float | None, zeros: bool, forgets_names: bool
) -> None:
    (tmp_path / "whole").mkdir()
    last = num_calls(tmp_path / "whole")
    assert last > 60
    for call in range(1, last + 1):
        folder = tmp_path / str(call)
        folder.mkdir()
        run = SmallRun(folder, CrashingDisk(dies_at=call, tears=tears))
        with pytest.raises(Crash):
            run.drive(replaced=True)
        run.disk.restart()
        if kept is not None:
            run.disk.power_off(kept=kept, zeros=zeros, forgets_names=forgets_names)
        run.drive()
        check(run)
