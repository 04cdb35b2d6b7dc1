"""A run's samples: what is written of a rollout, and that what is read is what was sampled."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.config import RunDataset
from actors.run_samples import load_samples, rows_of
from core.errors import UserError
from core.messages import Rollout, RolloutGroup
from tests.fakes import make_completion, make_group, make_prompt, make_rollout


def write(run: Path, step: int, *groups: RolloutGroup) -> Path:
    """As a run does."""
    (run / "samples").mkdir(exist_ok=True)
    lines = [json.dumps(row) for group in groups for row in rows_of(group)]
    file = run / "samples" / f"step-{step:06d}.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def load(run: Path, first_step: int = 1) -> list[RolloutGroup]:
    return list(load_samples(RunDataset(kind="run", path=str(run), first_step=first_step), max_tokens=100))


def group_of(name: str, *scores: float) -> RolloutGroup:
    prompt = make_prompt(1, 2, text=f"prompt of {name}")
    return make_group(
        name, [make_rollout(make_completion(5, prompt=prompt), score=score) for score in scores]
    )


def test_a_row_says_all_of_a_rollout() -> None:
    completion = make_completion(
        7,
        8,
        prompt=make_prompt(1, 2, text="a film"),
        behavior=[-1.23456789, -0.5],
        versions=[4, 3],
        text=" is",
    )
    group = make_group("group-3", [make_rollout(completion, score=0.25, reference=[-2.0, -3.0000001])])
    (row,) = rows_of(group)
    assert row.pop("kl_nats") == pytest.approx(0.76543211 + 2.5, abs=1e-6)
    assert row == {
        "group": "group-3",
        "policy_version": 3,
        "prompt": "a film",
        "completion": " is",
        "prompt_tokens": 2,
        "token_ids": [1, 2, 7, 8],
        "truncated": False,
        "behavior_logprobs": [0.0, 0.0, -1.23457, -0.5],
        "reference_logprobs": [0.0, 0.0, -2.0, -3.0],
        "rewards": {"fake": 0.25},
        "score": 0.25,
    }


def same(loaded: Rollout, written: Rollout) -> bool:
    """All that a learner looks at. Log-probs are written with 5 digits."""
    mine, theirs = loaded.completion, written.completion
    assert mine.behavior_logprobs_T == pytest.approx(theirs.behavior_logprobs_T, abs=6e-6, rel=1e-6)
    assert loaded.reference_logprobs_T == pytest.approx(written.reference_logprobs_T, abs=6e-6, rel=1e-6)
    assert mine.token_ids_T.tolist() == theirs.token_ids_T.tolist()
    assert mine.sampled_T.tolist() == theirs.sampled_T.tolist()
    assert mine.prompt.token_ids.tolist() == theirs.prompt.token_ids.tolist()
    assert (mine.prompt.text, mine.text) == (theirs.prompt.text, theirs.text)
    assert (mine.truncated, mine.policy_version) == (theirs.truncated, theirs.policy_version)
    assert (loaded.score, dict(loaded.rewards)) == (written.score, dict(written.rewards))
    assert {mine.token_ids_T.dtype, mine.prompt.token_ids.dtype} == {theirs.token_ids_T.dtype}
    return mine.behavior_logprobs_T.dtype == loaded.reference_logprobs_T.dtype == "float32"


@settings(deadline=None, max_examples=50)
@given(
    prompt=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4),
    sampled=st.lists(
        st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-50, 0), st.floats(-50, 0)), min_size=1),
        min_size=1,
        max_size=4,
    ),
    score=st.floats(allow_nan=False, allow_infinity=False),
    text=st.text(),
    version=st.integers(0, 10**6),
    truncated=st.booleans(),
)
def test_samples_are_read_as_they_were_written(
    prompt: list[int],
    sampled: list[list[tuple[int, float, float]]],
    score: float,
    text: str,
    version: int,
    truncated: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    rollouts = []
    for tokens in sampled:
        ids, behavior, reference = zip(*tokens, strict=True)
        completion = make_completion(
            *ids, prompt=make_prompt(*prompt, text=text), behavior=behavior, versions=[version], text=text
        )
        completion = replace(completion, truncated=truncated)
        rollouts.append(make_rollout(completion, score=score, reference=reference))
    run = tmp_path_factory.mktemp("run")
    write(run, 1, make_group("group-0", rollouts))
    (group,) = load(run)
    assert group.group_id == "group-0"
    assert all(same(*pair) for pair in zip(group.rollouts, rollouts, strict=True))
    assert len({rollout.completion.request_id for rollout in group.rollouts}) == len(rollouts)


def test_completions_of_several_versions_are_as_old_as_their_oldest_token(tmp_path: Path) -> None:
    write(tmp_path, 1, make_group("g", [make_rollout(make_completion(5, 6, 7, versions=[4, 3, 6]))]))
    (group,) = load(tmp_path)
    (span,) = group.rollouts[0].completion.version_spans
    assert (span.policy_version, span.start, span.stop) == (3, 0, 3)


def scores(groups: Sequence[RolloutGroup]) -> list[tuple[str, list[float]]]:
    return [(group.group_id, [rollout.score for rollout in group.rollouts]) for group in groups]


def test_groups_come_in_the_order_of_the_steps_and_of_their_rows(tmp_path: Path) -> None:
    write(tmp_path, 10, group_of("group-20", 6.0))
    write(tmp_path, 2, group_of("group-3", 5.0, 4.0), group_of("group-2", 3.0, 3.5))
    assert scores(load(tmp_path)) == [
        ("group-3", [5.0, 4.0]),
        ("group-2", [3.0, 3.5]),
        ("group-20", [6.0]),
    ]
    for step in (9, 4, 11, 3, 8, 100, 5):
        write(tmp_path, step, group_of(f"step-{step}", 0.0))
    names = [group.group_id for group in load(tmp_path, first_step=3)]
    assert names == ["step-3", "step-4", "step-5", "step-8", "step-9", "group-20", "step-11", "step-100"]


@pytest.mark.parametrize(("first_step", "names"), [(1, "abc"), (2, "bc"), (3, "c"), (10, "c")])
def test_steps_before_the_first_are_left_out(tmp_path: Path, first_step: int, names: str) -> None:
    for step, name in ((1, "a"), (2, "b"), (10, "c")):
        write(tmp_path, step, group_of(name, 1.0))
    assert [group.group_id for group in load(tmp_path, first_step)] == list(names)


def test_a_group_that_two_steps_saw_comes_twice(tmp_path: Path) -> None:
    """Steps on a dataset see its groups again in every epoch."""
    write(tmp_path, 1, group_of("dataset-0", 1.0, 0.0))
    write(tmp_path, 2, group_of("dataset-0", 1.0, 0.0))
    assert scores(load(tmp_path)) == [("dataset-0", [1.0, 0.0])] * 2


def test_a_group_of_two_prompts_is_refused(tmp_path: Path) -> None:
    """Or else completions of different prompts would be compared."""
    two = make_group("g", [*group_of("a", 1.0).rollouts, *group_of("b", 0.0).rollouts])
    write(tmp_path, 3, group_of("c", 1.0), two)
    with pytest.raises(
        UserError, match=r"step-000003.jsonl: g has two prompts, 'prompt of a' and 'prompt of b', so"
    ):
        load(tmp_path)


def test_a_folder_without_samples_and_a_row_without_tokens_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path}/samples: no samples from step 1 on; give the folder"):
        load(tmp_path)
    file = write(tmp_path, 4, group_of("a", 1.0))
    with pytest.raises(UserError, match="/samples: no samples from step 5 on; give the folder of a run$"):
        load(tmp_path, first_step=5)
    row = json.loads(file.read_text(encoding="utf-8"))
    del row["token_ids"]
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"step-000004\.jsonl:2: no column 'token_ids'"):
        load(tmp_path)
