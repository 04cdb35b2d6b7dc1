"""What `leash rollout` says of what it has sampled; the command itself is in tests/end_to_end."""

from dataclasses import replace

import pytest

from orchestration.sampling import reward_summary, summary_lines
from tests.fakes import make_completion, make_group, make_rollout


def test_the_summary_of_rewards_by_hand() -> None:
    scores = [[1.0, 3.0], [2.0, 2.0]]
    groups = [
        make_group(
            f"group-{number}",
            [
                replace(make_rollout(make_completion(number)), score=s, rewards={"length": 2 * s})
                for s in pair
            ],
        )
        for number, pair in enumerate(scores)
    ]
    summary = reward_summary(groups)
    assert (summary["groups"], summary["rollouts"], summary["zero_spread_fraction"]) == (2, 4, 0.5)
    # Scores 1, 3, 2, 2: mean 2, variance (1 + 1) / 4.
    assert summary["figures"]["score"] == pytest.approx(
        {"mean": 2.0, "std": 0.5**0.5, "min": 1.0, "max": 3.0}
    )
    assert summary["figures"]["length"] == pytest.approx({"mean": 4.0, "std": 2**0.5, "min": 2.0, "max": 6.0})
    lines = summary_lines(summary)
    assert lines[0].startswith("4 completions of 2 prompts; cut off at the longest: ")
    assert lines[0].endswith("groups whose scores are all the same: 50%")
    assert next(line.split() for line in lines if line.startswith("score")) == [
        *("score", "2", "0.7071", "1", "3")
    ]


def test_prompts_that_were_sampled_once_have_no_spread_to_speak_of() -> None:
    groups = [make_group(f"group-{number}", [make_rollout(make_completion(number))]) for number in range(3)]
    summary = reward_summary(groups)
    assert "zero_spread_fraction" not in summary
    assert summary_lines(summary)[0] == "3 completions of 3 prompts; cut off at the longest: 0%"
