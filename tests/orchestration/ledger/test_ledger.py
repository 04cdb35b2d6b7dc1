"""The ledger of a run, as one driver keeps it: leases, manifests, commits, discards."""

from pathlib import Path

import pytest

from orchestration.ledger.audit import audit
from orchestration.ledger.records import Begun, Committed, Noted
from tests.ledger_fakes import acknowledged, fresh_group, holds, opened, records, stepped, steps


def test_a_group_is_kept_until_it_is_committed(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    assert ledger.durable(0) is None
    groups = stepped(ledger, 1, 2)
    assert all(holds(ledger, number, group) for number, group in enumerate(groups))
    ledger.commit(1)
    assert [holds(ledger, number, group) for number, group in enumerate(groups)] == [False, False, True, True]
    ledger.commit(2)
    assert ledger.committed_step == 2
    assert [ledger.durable(number) for number in range(4)] == [None] * 4


def test_a_commit_covers_all_steps_since_the_one_before(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    stepped(ledger, 1, 2, 3)
    ledger.commit(3)
    assert [ledger.durable(number) for number in range(6)] == [None] * 6
    assert steps(tmp_path) == [
        Begun(step=1, numbers=(0, 1)),
        Begun(step=2, numbers=(2, 3)),
        Begun(step=3, numbers=(4, 5)),
        Committed(step=3),
    ]


def test_the_newest_lease_of_a_number_delivers_and_only_once(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    stale, fresh = ledger.lease(0), ledger.lease(0)
    assert not ledger.acknowledge(stale, fresh_group(0))
    assert ledger.durable(0) is None
    first = fresh_group(0)
    assert ledger.acknowledge(fresh, first)
    assert not ledger.acknowledge(fresh, fresh_group(0))
    assert not ledger.acknowledge(ledger.lease(0), fresh_group(0))
    assert holds(ledger, 0, first)
    ledger.begin_step(1, dict(enumerate([first, *acknowledged(ledger, 1)])))
    ledger.commit(1)
    assert not ledger.acknowledge(ledger.lease(0), fresh_group(0))
    assert ledger.num_refused == 4
    assert {reason: tally.groups for reason, tally in audit(tmp_path).refused.items()} == {
        "stale lease": 1,
        "acknowledged already": 2,
        "committed already": 1,
    }


def test_a_lease_delivers_one_group_even_if_that_is_discarded(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    lease = ledger.lease(0)
    assert ledger.acknowledge(lease, fresh_group(0))
    ledger.discard_durable(0, "too old")
    assert not ledger.acknowledge(lease, fresh_group(0))


def test_a_step_is_begun_in_order_with_the_groups_that_were_acknowledged(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    groups = acknowledged(ledger, 0, 1, 2)
    for step, wrong, problem in [
        (2, {0: groups[0], 1: groups[1]}, "step 2 after step 0"),
        (0, {0: groups[0], 1: groups[1]}, "step 0 after step 0"),
        (1, {0: groups[0]}, "1 groups for step 1"),
        (1, dict(enumerate(groups)), "3 groups for step 1"),
        (1, {0: groups[1], 1: groups[0]}, r"group 0 \(group-1\) is not the one that was acknowledged"),
        (1, {0: groups[0], 1: fresh_group(1)}, r"group 1 \(group-1\) is not the one"),
        (1, {0: groups[0], 3: fresh_group(3)}, r"group 3 \(group-3\) is not the one"),
    ]:
        with pytest.raises(AssertionError, match=problem):
            ledger.begin_step(step, wrong)
    first = {0: groups[0], 1: groups[1]}
    ledger.begin_step(1, first)
    with pytest.raises(AssertionError, match=r"step 2: group 3 \(group-3\) is not the one"):
        ledger.begin_step(2, {2: groups[2], 3: fresh_group(3)})
    with pytest.raises(AssertionError, match="step 2: group 1 is in another step"):
        ledger.begin_step(2, {2: groups[2], 1: groups[1]})
    with pytest.raises(AssertionError, match="step 1 after step 1"):
        ledger.begin_step(1, first)
    assert steps(tmp_path) == [Begun(step=1, numbers=(0, 1))]


def test_commits_and_rollbacks_name_steps_that_there_are(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    stepped(ledger, 1)
    ledger.commit(1)
    for step in (1, 2):
        with pytest.raises(AssertionError):
            ledger.commit(step)
    with pytest.raises(AssertionError):
        ledger.rollback(2)


def test_a_learner_that_goes_back_trains_on_the_same_groups_again(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    groups = stepped(ledger, 1, 2, 3)
    ledger.commit(1)
    ledger.rollback(1)
    assert ledger.durable(1) is None
    assert all(holds(ledger, number, groups[number]) for number in range(2, 6))
    ledger.begin_step(2, {2: groups[2], 3: groups[3]})
    ledger.commit(2)
    assert audit(tmp_path).num_steps_rolled_back == 2
    assert audit(tmp_path).violations == ()


def test_a_learner_that_goes_back_to_a_checkpoint_not_heard_of_has_committed_it(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    stepped(ledger, 1, 2, 3)
    ledger.rollback(2)
    assert ledger.committed_step == 2
    ledger.finish("done")
    found = audit(tmp_path)
    assert (found.last_step, found.committed.groups, found.discarded["done"].groups) == (2, 4, 2)
    assert found.violations == ()


def test_trajectories_that_were_not_acknowledged_are_discarded_by_number_of_rollouts(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    lease = ledger.lease(0)
    ledger.discard(0, 4, "no spread")
    ledger.discard(0, 4, "no spread")
    group = fresh_group(0)
    assert ledger.acknowledge(lease, group)
    ledger.discard(0, 3, "worker lost")  # another worker's, of the same number
    assert holds(ledger, 0, group)
    assert audit(tmp_path).unacknowledged == {"no spread": 8, "worker lost": 3}
    assert audit(tmp_path).discarded == {}


def test_a_group_that_was_acknowledged_and_discarded_makes_room_for_another(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    acknowledged(ledger, 0)
    ledger.discard_durable(0, "too old")
    assert ledger.durable(0) is None
    assert opened(tmp_path).durable(0) is None
    ledger = opened(tmp_path)
    (group,) = acknowledged(ledger, 0)
    ledger.begin_step(1, dict(enumerate([group, *acknowledged(ledger, 1)])))
    with pytest.raises(AssertionError, match="group 1 is in a step that was begun"):
        ledger.discard_durable(1, "too old")
    found = audit(tmp_path)
    assert (found.sampled.groups, found.discarded["too old"].trajectories, found.violations) == (3, 2, ())


def test_what_a_finished_run_did_not_use_is_discarded_with_the_reason(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    stepped(ledger, 1, 2)
    ledger.commit(1)
    acknowledged(ledger, 5)
    ledger.finish("out of budget")
    found = audit(tmp_path)
    assert (found.finished, found.pending.groups, found.committed.groups) == ("out of budget", 0, 2)
    assert found.discarded["out of budget"].groups == 3
    assert found.violations == ()
    ledger = opened(tmp_path, 1)
    stepped(ledger, 2)
    assert audit(tmp_path).finished is None


def test_a_run_on_a_dataset_records_its_steps_only(tmp_path: Path) -> None:
    ledger = opened(tmp_path, journals_groups=False)
    ledger.begin_step(1, {0: fresh_group(0), 1: fresh_group(1)})
    ledger.begin_step(2, {2: fresh_group(0), 3: fresh_group(1)})
    ledger.commit(1)
    with pytest.raises(AssertionError, match="opened without groups"):
        ledger.acknowledge(ledger.lease(4), fresh_group(4))
    ledger = opened(tmp_path, 1, journals_groups=False)
    ledger.begin_step(2, {2: fresh_group(0), 3: fresh_group(1)})
    ledger.commit(2)
    ledger.finish("done")
    found = audit(tmp_path)
    assert (found.num_steps_committed, found.num_steps_rolled_back, found.sampled.groups) == (2, 1, 0)
    assert found.violations == ()


def test_notes_are_kept_with_the_time(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.note("worker died", {"worker": "rollout-1", "exit": -9})
    ledger.close()
    (note,) = [record for record in records(tmp_path) if isinstance(record, Noted)]
    assert (note.kind, note.fields) == ("worker died", {"worker": "rollout-1", "exit": -9})
    assert note.time_s > 1.7e9
