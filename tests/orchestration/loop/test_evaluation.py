"""The comparison of two policies, against numbers worked out by hand."""

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.rollout import RolloutPool, WeightedReward
from core.errors import RewardError
from core.messages import Completion, Prompt, Rollout
from orchestration.loop.evaluation import (
    Comparison,
    Sample,
    compare,
    evaluate,
    evaluate_best_of,
    load_samples,
    samples_of,
    save_samples,
    spread,
    summarize,
    table_rows,
)
from tests.fakes import (
    FakeSampler,
    FakeScorer,
    flat_reference,
    make_completion,
    make_prompt,
    make_rollout,
    run_virtually,
    serving_fleet,
)


def decode(token_ids: list[int]) -> str:
    return " ".join(map(str, token_ids))


def sum_of_completion(completion: Completion) -> float:
    """What a reward that reads ids and one that reads text both see."""
    ids = completion.token_ids_T[completion.num_prompt_tokens :].tolist()
    assert completion.text == decode(ids)
    assert completion.sampled_T.tolist() == [False] * completion.num_prompt_tokens + [True] * len(ids)
    return float(sum(ids))


def make_pool() -> tuple[FakeSampler, RolloutPool]:
    sampler = FakeSampler(delay_s=lambda request: request.seed * 7 % 5)
    rewards = {"sum": WeightedReward(server=FakeScorer(sum_of_completion), weight=0.5)}
    return sampler, RolloutPool(serving_fleet(sampler), FakeScorer(flat_reference), rewards)


def rollout_of(*ids: int, prompt_ids: tuple[int, ...] = (1, 2), score: float = 0.0) -> Rollout:
    completion = make_completion(*ids, prompt=make_prompt(*prompt_ids), text=decode(list(ids)))
    return make_rollout(completion, score=score)


def test_pairs_are_scored_again_at_the_length_of_the_shorter_one() -> None:
    old = [rollout_of(10, 20, 30), rollout_of(5, prompt_ids=(1, 2, 3)), rollout_of(8, 9)]
    new = [rollout_of(1, 2), rollout_of(7, 8, 9, prompt_ids=(1, 2, 3)), rollout_of(3, 4)]
    _, pool = make_pool()
    comparison = run_virtually(compare(pool, samples_of(old), new, decode))
    assert comparison.matched_before == [0.5 * (10 + 20), 0.5 * 5, 0.5 * (8 + 9)]
    assert comparison.matched_after == [0.5 * (1 + 2), 0.5 * 7, 0.5 * (3 + 4)]
    assert comparison.before == samples_of(old)
    assert comparison.after == samples_of(new)


def test_what_is_evaluated_does_not_count_as_sampled_to_be_trained_on() -> None:
    """Else a run that learns from a dataset would compare its texts with these by length."""
    rewards = {"one": WeightedReward(server=FakeScorer(lambda completion: 1.0), weight=1.0)}
    pool = RolloutPool(serving_fleet(FakeSampler()), FakeScorer(flat_reference), rewards)

    async def drive() -> dict[str, float]:
        await evaluate(pool, [make_prompt(1)], seed=0)
        await evaluate_best_of(pool, [make_prompt(1)], count=3, seed=0)
        return pool.take_figures()

    figures = run_virtually(drive())
    assert set(figures) == {"wait_reward_s", "wait_reference_s"}


def test_two_evaluations_use_the_same_seeds_and_no_two_prompts_share_one() -> None:
    sampler, _ = make_pool()
    pool = RolloutPool(serving_fleet(sampler), FakeScorer(flat_reference), {})
    prompts = [make_prompt(index + 1, text=str(index)) for index in range(12)]
    first = run_virtually(evaluate(pool, prompts, seed=3))
    seeds = [request.seed for request in sampler.requests]
    run_virtually(evaluate(pool, prompts, seed=3))
    assert [request.seed for request in sampler.requests[12:]] == seeds
    assert len(set(seeds)) == 12
    assert [rollout.completion.prompt.text for rollout in first] == [prompt.text for prompt in prompts]


def sample(score: float, tokens: int, kl_nats: float = 0.0, **rewards: float) -> Sample:
    return Sample(
        prompt="p",
        completion="c",
        completion_ids=[0] * tokens,
        rewards=rewards,
        score=score,
        kl_nats=kl_nats,
    )


def test_a_summary_worked_out_by_hand() -> None:
    """Scores before: 1, 3, 5, so their mean is 3 and their sample standard deviation 2."""
    summary = summarize(
        Comparison(
            before=[sample(1, 4, a=1, b=0), sample(3, 6, a=3, b=0), sample(5, 8, a=5, b=3)],
            after=[sample(5, 2, 0.5, a=5, b=1), sample(7, 3, 1.5, a=7, b=1), sample(9, 10, 4, a=9, b=1)],
            matched_before=[1.0, 2.0, 3.0],
            matched_after=[2.0, 5.0, 2.0],
        )
    )
    assert summary["reward_before"] == {"mean": 3.0, "std": 2.0, "count": 3}
    assert summary["reward_after"] == {"mean": 7.0, "std": 2.0, "count": 3}
    assert summary["reward_gain_in_std"] == (7.0 - 3.0) / 2.0
    matched = summary["reward_at_matched_length"]
    assert matched["before"] == {"mean": 2.0, "std": 1.0, "count": 3}
    assert matched["after"] == {"mean": 3.0, "std": pytest.approx(math.sqrt(3)), "count": 3}
    assert matched["gain_in_std"] == pytest.approx((1 + 3 - 1) / 3 / 2.0)
    assert summary["rewards_by_source"]["b"]["before"] == {
        "mean": 1.0,
        "std": pytest.approx(math.sqrt(3)),
        "count": 3,
    }
    assert summary["rewards_by_source"]["a"]["after"]["mean"] == 7.0
    assert summary["kl_nats_per_sequence"] == 2.0
    assert (summary["completion_tokens_before"], summary["completion_tokens_after"]) == (6.0, 5.0)


@pytest.mark.parametrize("scores", [[2.0], [2.0, 2.0]], ids=["one prompt", "equal scores"])
def test_without_a_spread_there_is_no_gain_to_tell_but_still_a_summary(scores: list[float]) -> None:
    """The run is over by then: an error here would throw all of it away."""
    samples = [sample(score, 3, a=score) for score in scores]
    summary = summarize(
        Comparison(before=samples, after=samples, matched_before=scores, matched_after=scores)
    )
    assert math.isnan(summary["reward_gain_in_std"])
    assert math.isnan(summary["reward_at_matched_length"]["gain_in_std"])
    assert summary["reward_after"]["mean"] == 2.0


def test_the_spread_of_one_value_is_unknown() -> None:
    assert spread([4.0])["mean"] == 4.0
    assert math.isnan(spread([4.0])["std"])


def test_samples_come_back_as_they_were_saved(tmp_path: Path) -> None:
    rollout = rollout_of(3, 4, score=1.25)
    samples = [*samples_of([rollout]), sample(0.1, 2, 0.3, a=1.0)]
    odd = Sample(
        prompt="line\u2028separator",
        completion="a\nb\x0bc \u00fc",
        completion_ids=[],
        rewards={},
        score=0,
        kl_nats=0,
    )
    save_samples([*samples, odd], tmp_path / "heldout-before.jsonl")
    assert load_samples(tmp_path / "heldout-before.jsonl") == [*samples, odd]
    assert samples[0].completion_ids == [3, 4]
    assert samples[0].kl_nats == pytest.approx(2 * (-1.0 + 2.0))
    assert [path.name for path in tmp_path.iterdir()] == ["heldout-before.jsonl"]
    json.loads((tmp_path / "heldout-before.jsonl").read_text(encoding="utf-8").splitlines()[0])


def test_the_table_puts_both_policies_side_by_side() -> None:
    before, after = samples_of([rollout_of(3, score=1.0)]), samples_of([rollout_of(4, score=2.0)])
    comparison = Comparison(before=before, after=after, matched_before=[0.0], matched_after=[0.0])
    assert table_rows(comparison) == [
        {"prompt": "a prompt", "before": "3", "after": "4", "reward_before": 1.0, "reward_after": 2.0}
    ]


def test_best_of_n_keeps_the_best_of_each_prompt_and_says_what_choosing_costs() -> None:
    sampler, _ = make_pool()

    def score(completion: Completion) -> float:
        """The middle one of three is the best, and the second prompt's are ten better."""
        index = int(completion.request_id.rsplit("-", 1)[1])
        return (1.0, 5.0, 3.0)[index] + 10.0 * (completion.prompt.text == "b")

    rewards = {"one": WeightedReward(server=FakeScorer(score), weight=1.0)}
    pool = RolloutPool(serving_fleet(sampler), FakeScorer(flat_reference), rewards)
    prompts = [make_prompt(1, text="a"), make_prompt(2, text="b")]
    found = run_virtually(evaluate_best_of(pool, prompts, count=3, seed=0))
    assert len({request.seed for request in sampler.requests}) == 6
    assert found["n"] == 3
    assert found["reward"] == {"mean": 10.0, "std": pytest.approx(50**0.5), "count": 2}  # of 5 and 15
    assert found["kl_nats_bound"] == pytest.approx(0.4319, abs=1e-4)  # ln 3 - 2/3


def test_an_evaluation_that_fails_leaves_nothing_running() -> None:
    """What ran on would meet workers and a ledger that are gone, and fail once more."""

    class Pool:
        async def roll_out(self, prompt: Prompt, *, group_id: str, seeds: Sequence[int], counts: bool) -> Any:
            if group_id == "heldout-1":
                raise RewardError("no such table")
            await asyncio.sleep(60)

    async def main() -> None:
        prompts = [Prompt(prompt_id=str(n), text="", token_ids=np.zeros(1, dtype=np.int32)) for n in range(3)]
        pool: Any = Pool()
        with pytest.raises(RewardError, match="no such table"):
            await evaluate(pool, prompts, seed=0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
