"""The audit: figures of ledgers written by hand, violations planted one by one, and the rows of an export."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import UserError
from orchestration.ledger.audit import Audit, Tally, audit, audit_lines, exported_rows
from orchestration.ledger.journal import Journal
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
)
from orchestration.ledger.segments import frame
from tests.fakes import make_completion, make_group, make_rollout
from tests.ledger_fakes import fresh_group

OPENED = Opened(committed_step=0, groups_per_step=2, journals_groups=True, time_s=0.0)


def write(run: Path, records: Sequence[Record]) -> Journal:
    """A driver that recorded this, whether it makes sense or not."""
    journal = Journal.open(run / "ledger")
    for record in records:
        journal.append(pack(record))
    journal.sync()
    return journal


def got(*numbers: int) -> list[Acknowledged]:
    """Groups of two, acknowledged."""
    return [
        Acknowledged(number=number, num_rollouts=2, group=pack_group(fresh_group(number)))
        for number in numbers
    ]


def dropped(number: int, reason: str = "too old") -> Discarded:
    return Discarded(number=number, num_rollouts=2, reason=reason, acknowledged=True)


FIRST = Begun(step=1, numbers=(0, 1))
SECOND = Begun(step=2, numbers=(2, 3))

SOUND: dict[str, list[Record]] = {
    "nothing yet": [],
    "steps in order": [*got(0, 1, 2, 3), FIRST, Committed(step=1), SECOND, Committed(step=2)],
    "two steps in one commit": [*got(0, 1), FIRST, *got(2, 3), SECOND, Committed(step=2)],
    "begun again after a rollback": [
        *got(0, 1, 2, 3),
        FIRST,
        SECOND,
        RolledBack(step=0),
        FIRST,
        Committed(step=1),
    ],
    "committed again after a rollback": [
        *got(0, 1),
        FIRST,
        Committed(step=1),
        RolledBack(step=0),
        FIRST,
        Committed(step=1),
    ],
    "discarded and sampled again": [*got(0), dropped(0), *got(0, 1), FIRST, Committed(step=1)],
    "rolled back, then discarded": [*got(0, 1), FIRST, RolledBack(step=0), dropped(0), Finished(reason="x")],
    "committed, rolled back, then discarded": [
        *got(0, 1),
        FIRST,
        Committed(step=1),
        RolledBack(step=0),
        dropped(0),
    ],
    "a slow group is overtaken": [
        *got(0, 2),
        Begun(step=1, numbers=(0, 2)),
        Committed(step=1),
        *got(1, 3),
        Begun(step=2, numbers=(1, 3)),
        Committed(step=2),
        Finished(reason="x"),
    ],
    "begun again with others, as one of them was discarded": [
        *got(0, 1, 2, 3),
        FIRST,
        SECOND,
        RolledBack(step=0),
        dropped(1),
        Begun(step=1, numbers=(0, 2)),
        *got(1),
        Begun(step=2, numbers=(1, 3)),
        Committed(step=2),
    ],
    "discarded before it was acknowledged": [
        replace(dropped(0), acknowledged=False),
        *got(0, 1),
        FIRST,
        Committed(step=1),
        replace(dropped(0), acknowledged=False),
    ],
}


@pytest.mark.parametrize("records", SOUND.values(), ids=SOUND)
def test_a_ledger_that_keeps_the_promise_has_no_violation(tmp_path: Path, records: list[Record]) -> None:
    write(tmp_path, [OPENED, *records])
    assert audit(tmp_path).violations == ()


PLANTED: list[tuple[str, list[Record]]] = [
    (
        "group 1 is committed in step 1 and in step 2",
        [*got(0, 1, 2), FIRST, Begun(step=2, numbers=(1, 2)), Committed(step=2)],
    ),
    ("step 2 was committed and never begun", [*got(0, 1), FIRST, Committed(step=2)]),
    ("step 1 was committed and never begun", [*got(0, 1), FIRST, RolledBack(step=0), Committed(step=1)]),
    (
        "group 1 is committed in step 1 and was not acknowledged before it was begun",
        [*got(0), FIRST, Committed(step=1)],
    ),
    (
        "group 1 is committed in step 1 and was not acknowledged before it was begun",
        [*got(0), FIRST, *got(1), Committed(step=1)],
    ),
    (
        "group 0 is committed in step 1 and was discarded (too old)",
        [*got(0, 1), dropped(0), FIRST, Committed(step=1)],
    ),
    (
        "group 0 is committed in step 1 and was discarded (too old)",
        [*got(0, 1), FIRST, dropped(0), Committed(step=1)],
    ),
    (
        "group 0 is committed in step 1 and was discarded (too old)",
        [*got(0, 1), FIRST, Committed(step=1), dropped(0)],
    ),
    ("group 0 was discarded (too old) and is not acknowledged", [dropped(0)]),
    ("group 0 was discarded (too old) and is not acknowledged", [*got(0), dropped(0), dropped(0)]),
    ("step 1 was committed after step 1", [*got(0, 1), FIRST, Committed(step=1), Committed(step=1)]),
    (
        "step 1 was committed after step 2",
        [*got(0, 1, 2, 3), FIRST, SECOND, Committed(step=2), Committed(step=1)],
    ),
    ("step 2 was begun after step 0", [*got(2, 3), SECOND]),
    ("step 1 was begun after step 1", [*got(0, 1), FIRST, FIRST]),
    (
        "step 1 was begun with groups [0, 1, 2], and a step has 2",
        [*got(0, 1, 2), Begun(step=1, numbers=(0, 1, 2))],
    ),
    ("step 1 was begun with groups [0, 0], and a step has 2", [*got(0), Begun(step=1, numbers=(0, 0))]),
    (
        "step 1 was begun with groups [0, 1], and then with [1, 0]",
        [*got(0, 1), FIRST, RolledBack(step=0), Begun(step=1, numbers=(1, 0))],
    ),
    (
        "step 2 was begun with groups [2, 3], and then with [3, 4]",
        [*got(0, 1, 2, 3, 4), FIRST, SECOND, RolledBack(step=1), Begun(step=2, numbers=(3, 4))],
    ),
    (
        "the run is over (done), and 1 groups were overtaken for good",
        [
            *got(0, 1, 2),
            Begun(step=1, numbers=(0, 2)),
            Committed(step=1),
            dropped(1),
            Finished(reason="done"),
        ],
    ),
    ("group 0 was acknowledged twice", [*got(0), *got(0)]),
    (
        "group 0 was acknowledged twice",
        [*got(0, 1), FIRST, Committed(step=1), *got(0)],
    ),
]


@pytest.mark.parametrize(("violation", "records"), PLANTED, ids=[name for name, _ in PLANTED])
def test_a_broken_promise_is_named(tmp_path: Path, violation: str, records: list[Record]) -> None:
    write(tmp_path, [OPENED, *records])
    found = audit(tmp_path)
    assert found.violations == (violation,)
    assert audit_lines(found)[-1] == f"{len(found.violations)} violations"
    assert f"violation: {violation}" in audit_lines(found)


def test_steps_of_a_dataset_need_no_groups(tmp_path: Path) -> None:
    write(tmp_path, [replace(OPENED, journals_groups=False), FIRST, SECOND, Committed(step=2)])
    found = audit(tmp_path)
    assert (found.violations, found.last_step, found.sampled) == ((), 2, Tally(0, 0))


def test_an_audit_counts_everything_there_is(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    zombie = write(tmp_path, [OPENED, *got(0, 1, 2), FIRST, SECOND])
    (ledger / "000002.log").write_bytes(b"torn")
    write(
        tmp_path,
        [
            OPENED,
            RolledBack(step=0),
            FIRST,
            Committed(step=1),
            Refused(number=0, num_rollouts=2, reason="stale lease"),
            Refused(number=0, num_rollouts=3, reason="stale lease"),
            replace(dropped(3, "no spread"), num_rollouts=5, acknowledged=False),
            *got(4, 5),
            dropped(4),
            Noted(kind="worker died", fields={}, time_s=0.0),
        ],
    )
    for record in got(8, 9):
        zombie.append(pack(record))
    with (ledger / "000003.log").open("ab") as file:
        file.write(frame(b"abc")[:-1])
    found = audit(tmp_path)
    assert found == Audit(
        num_drivers=2,
        first_step=1,
        last_step=1,
        num_steps_rolled_back=2,
        sampled=Tally(5, 10),
        committed=Tally(2, 4),
        pending=Tally(2, 4),
        discarded={"too old": Tally(1, 2)},
        unacknowledged={"no spread": 5},
        refused={"stale lease": Tally(2, 5)},
        num_overtaken=0,
        num_zombie_frames=2,
        num_torn_bytes=4 + 10,
        finished=None,
        violations=(),
    )
    assert audit_lines(found) == [
        "the run may go on",
        "2 drivers, one after the other",
        "1 steps committed, 1 to 1; 2 rolled back",
        "sampled and acknowledged: 5 groups, 10 trajectories",
        "  committed: 2 groups, 4 trajectories",
        "  pending: 2 groups, 4 trajectories",
        "  discarded, too old: 1 groups, 2 trajectories",
        "discarded before they were acknowledged, no spread: 5 trajectories",
        "refused, stale lease: 2 groups, 5 trajectories",
        "ignored: 2 records of drivers that had been replaced, 14 bytes cut short by crashes",
        "no violation",
    ]


def test_groups_of_a_commit_that_was_undone_are_pending(tmp_path: Path) -> None:
    write(tmp_path, [OPENED, *got(0, 1), FIRST, Committed(step=1), RolledBack(step=0)])
    found = audit(tmp_path)
    assert (found.committed, found.pending, found.last_step) == (Tally(0, 0), Tally(2, 4), 0)


def test_an_audit_says_why_a_run_is_over(tmp_path: Path) -> None:
    write(tmp_path, [OPENED, Finished(reason="all steps done")])
    assert audit_lines(audit(tmp_path))[0] == "the run is over: all steps done"
    write(tmp_path, [OPENED])
    assert audit(tmp_path).finished is None


def test_an_audit_writes_nothing_and_takes_nothing_over(tmp_path: Path) -> None:
    journal = write(tmp_path, [OPENED, *got(0)])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.log")}
    audit(tmp_path)
    list(exported_rows(tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.log")} == before
    journal.sync()


def test_a_folder_without_a_ledger_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ledger: no ledger in it; give the folder of a run"):
        audit(tmp_path)
    with pytest.raises(UserError, match=r"ledger: no ledger in it"):
        next(exported_rows(tmp_path))


def test_an_exported_row_says_what_was_sampled_and_what_became_of_it(tmp_path: Path) -> None:
    rollouts = [
        make_rollout(make_completion(7, behavior=[-0.5], text=text), score=score, reference=[-1.0])
        for text, score in ((" good", 1.0), (" bad", 0.0))
    ]
    group = pack_group(make_group("group-0", rollouts))
    write(
        tmp_path,
        [
            OPENED,
            *got(0),
            dropped(0),
            Acknowledged(number=0, num_rollouts=2, group=group),
            *got(1, 2),
            FIRST,
            Committed(step=1),
        ],
    )
    rows = list(exported_rows(tmp_path))
    assert rows[2] == {
        "group": "group-0",
        "policy_version": 0,
        "prompt": "a prompt",
        "completion": " good",
        "prompt_tokens": 2,
        "token_ids": [1, 2, 7],
        "truncated": False,
        "behavior_logprobs": [0.0, 0.0, -0.5],
        "reference_logprobs": [0.0, 0.0, -1.0],
        "rewards": {"fake": 1.0},
        "score": 1.0,
        "kl_nats": 0.5,
        "number": 0,
        "fate": "committed",
        "step": 1,
        "reason": None,
    }
    assert [(row["number"], row["fate"], row["step"], row["reason"]) for row in rows[::2]] == [
        (0, "discarded", None, "too old"),
        (0, "committed", 1, None),
        (1, "committed", 1, None),
        (2, "pending", None, None),
    ]
