"""Groups by number: sampled ones with their prompts and seeds, those of a dataset with their order."""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.config import SEEDS_PER_GROUP, FaultsConfig
from actors.fleet import Fleet
from actors.rollout import RolloutPool, WeightedReward
from actors.run_samples import load_step, rows_of
from core.config import MAX_SEED
from core.errors import LearnerLost, RetriesExhausted, RewardError
from core.messages import Completion, DemonstrationGroup, RolloutGroup, SampleRequest
from core.stream import SeededStream
from core.weights import WeightManifest
from orchestration.loop.evaluation import BEST_OF_SEED, EVALUATION_SEED
from orchestration.loop.sources import DatasetGroups, JournaledGroups, SampledGroups
from tests.fakes import (
    FakeSampler,
    FakeScorer,
    flat_reference,
    make_completion,
    make_demonstration,
    make_group,
    make_manifest,
    make_prompt,
    make_rollout,
    run_virtually,
    serving_fleet,
)

PROMPTS = [make_prompt(index + 1, text=f"prompt {index}") for index in range(7)]
SECOND, THIRD = 2**40, 2**41
"""How far behind its place in the stream a group's second and third prompt lie."""


class Sampling:
    """Sampled groups of two, with everything that they draw on. Rewards are 1 for `winners`, 0 for others."""

    def __init__(
        self,
        *,
        winners: Sequence[int] = (),
        group_size: int = 2,
        max_resamples: int = 0,
        seed: int = 0,
        delay_s: Callable[[object], float] = lambda request: 0.0,
    ) -> None:
        def reward(completion: Completion) -> float:  # a fake completion is its seed
            return float(int(completion.token_ids_T[-1]) in winners)

        self.sampler = FakeSampler(delay_s=delay_s)
        self.discarded: list[tuple[int, int, str]] = []
        rewards = {"wins": WeightedReward(server=FakeScorer(reward), weight=1.0)}
        self.source = SampledGroups(
            RolloutPool(serving_fleet(self.sampler), FakeScorer(flat_reference), rewards),
            SeededStream([PROMPTS], seed=seed),
            group_size=group_size,
            max_resamples=max_resamples,
            seed=seed,
            on_discard=lambda *discard: self.discarded.append(discard),
        )

    def group(self, number: int) -> RolloutGroup:
        return run_virtually(self.source.group(number))

    @property
    def asked(self) -> list[tuple[str, int]]:
        """Prompt and seed of every completion that was sampled."""
        return [(request.prompt.text, request.seed) for request in self.sampler.requests]


def prompt_at(place: int, *, seed: int = 0) -> str:
    return SeededStream([PROMPTS], seed=seed)[place].text


def seeds_of(group: RolloutGroup) -> list[int]:
    return [int(rollout.completion.token_ids_T[-1]) for rollout in group.rollouts]


@pytest.mark.parametrize(
    ("seed", "number", "first_seed"), [(0, 0, 0), (0, 3, 3_000), (1, 0, 1_000_003_000), (1, 9, 1_000_012_000)]
)
def test_prompt_and_seeds_follow_from_the_number(seed: int, number: int, first_seed: int) -> None:
    sampling = Sampling(seed=seed)
    group = sampling.group(number)
    assert group.group_id == f"group-{number}"
    prompt = prompt_at(number, seed=seed)
    assert group.prompt.text == prompt
    assert sampling.asked == [(prompt, first_seed), (prompt, first_seed + 1)]
    assert sampling.source.on_policy


def test_the_largest_seed_keeps_all_seeds_of_completions_apart_from_those_of_evaluations() -> None:
    sampling = Sampling(seed=MAX_SEED)
    sampling.group(10**9)  # more groups than any run has
    assert all(seed < EVALUATION_SEED - SEEDS_PER_GROUP for _, seed in sampling.asked)
    assert EVALUATION_SEED + MAX_SEED * 100_003 + 10**9 < BEST_OF_SEED
    assert BEST_OF_SEED + (MAX_SEED * 100_003 + 10**9) * 1_000 < 2**63, "engines take no larger one"


def test_a_group_is_the_same_whatever_was_asked_for_before() -> None:
    straight, resumed = Sampling(), Sampling()
    groups = [straight.group(number) for number in range(9)]
    again = [resumed.group(number) for number in (8, 5)]
    assert [(g.prompt.text, seeds_of(g)) for g in again] == [
        (groups[number].prompt.text, seeds_of(groups[number])) for number in (8, 5)
    ]


def test_without_resampling_equal_scores_are_taken_as_they_are() -> None:
    sampling = Sampling(max_resamples=0)
    assert [rollout.score for rollout in sampling.group(3).rollouts] == [0.0, 0.0]
    assert len(sampling.asked) == 2
    assert sampling.discarded == []


def test_scores_that_differ_are_not_sampled_anew() -> None:
    sampling = Sampling(winners=[3_001], max_resamples=5)
    assert [rollout.score for rollout in sampling.group(3).rollouts] == [0.0, 1.0]
    assert len(sampling.asked) == 2
    assert sampling.discarded == []


def test_equal_scores_bring_another_prompt_until_they_differ() -> None:
    """The first two win both, the next two lose both, of the third pair one wins."""
    sampling = Sampling(winners=[3_000, 3_001, 3_005], max_resamples=4)
    group = sampling.group(3)
    prompts = [prompt_at(place) for place in (3, 3 + SECOND, 3 + THIRD)]
    assert sampling.asked == [(prompts[k // 2], 3_000 + k) for k in range(6)]
    assert len(set(prompts)) > 1, "this seed should show that the prompt changes"
    assert (group.group_id, group.prompt.text) == ("group-3", prompts[2])
    assert seeds_of(group) == [3_004, 3_005]
    assert [rollout.score for rollout in group.rollouts] == [0.0, 1.0]
    assert sampling.discarded == [(3, 2, "no spread")] * 2


def test_a_group_is_replaced_so_many_times_at_most() -> None:
    sampling = Sampling(max_resamples=2)
    assert seeds_of(sampling.group(3)) == [3_004, 3_005]
    assert len(sampling.asked) == 6
    assert sampling.discarded == [(3, 2, "no spread")] * 2


def test_replaced_groups_are_counted_over_the_run() -> None:
    sampling = Sampling(winners=[0, 1_002], max_resamples=1)
    for number in range(4):
        sampling.group(number)
    assert [number for number, _, _ in sampling.discarded] == [1, 2, 3], (
        "the two of group 0 score differently"
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(0, 4), st.integers(0, 2**20), st.integers(0, 2**20))
def test_no_two_completions_of_a_run_share_a_seed(
    group_size: int, max_resamples: int, seed: int, first: int
) -> None:
    sampling = Sampling(group_size=group_size, max_resamples=max_resamples, seed=seed)
    for number in range(first, first + 4):
        sampling.group(number)
    seeds = [seed for _, seed in sampling.asked]
    assert len(set(seeds)) == len(seeds) == 4 * (max_resamples + 1) * group_size


class Dataset:
    """Groups of a dataset with two texts each, the reference that scores them, and the source of both."""

    def __init__(self, size: int, *, seed: int = 0) -> None:
        self.reference = FakeScorer(flat_reference, delay_s=1.0)
        self.sampler = FakeSampler()
        groups = [
            DemonstrationGroup(
                group_id=f"dataset-{k}",
                demonstrations=(make_demonstration(5, score=k + 0.5), make_demonstration(6, 7, score=-k)),
            )
            for k in range(size)
        ]
        pool = RolloutPool(serving_fleet(self.sampler), self.reference, {})
        self.source = DatasetGroups(pool, [groups], seed=seed)

    def take(self, numbers: Sequence[int]) -> list[RolloutGroup]:
        async def one_by_one() -> list[RolloutGroup]:
            return [await self.source.group(number) for number in numbers]

        return run_virtually(one_by_one())

    def order(self, numbers: Sequence[int]) -> list[int]:
        return [place_of(group) for group in self.take(numbers)]


def place_of(group: RolloutGroup) -> int:
    """In the dataset."""
    return int(group.rollouts[0].score)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 9), seed=st.integers(0, 2**40), epoch=st.integers(0, 20))
def test_every_epoch_brings_every_group_once(size: int, seed: int, epoch: int) -> None:
    numbers = range(epoch * size, (epoch + 1) * size)
    order = Dataset(size, seed=seed).order(numbers)
    assert sorted(order) == list(range(size))
    assert Dataset(size, seed=seed).order(numbers[::-1]) == order[::-1]


def test_epochs_and_seeds_have_orders_of_their_own_in_a_dataset() -> None:
    orders = {
        tuple(Dataset(11, seed=seed).order(range(epoch * 11, (epoch + 1) * 11)))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_the_reference_is_asked_once_for_each_text() -> None:
    dataset = Dataset(5)
    first_epoch, second_epoch, third_epoch = (
        {place_of(group): group.rollouts for group in dataset.take(range(start, start + 5))}
        for start in (0, 5, 10)
    )
    assert dataset.reference.num_started == 2 * 5
    assert first_epoch == second_epoch == third_epoch
    assert dataset.sampler.requests == []
    assert not dataset.source.on_policy


def test_texts_keep_their_scores() -> None:
    for group in Dataset(5).take(range(5)):
        k = place_of(group)
        assert [rollout.score for rollout in group.rollouts] == [k + 0.5, -k]
        assert [rollout.completion.token_ids_T.tolist() for rollout in group.rollouts] == [
            [1, 2, 5],
            [1, 2, 6, 7],
        ]


def test_what_a_run_sampled_is_measured_from_the_present_reference() -> None:
    """The run may have started from another model: only its reference log-probs are made anew, once."""
    reference = FakeScorer(flat_reference)
    groups = [
        make_group(f"group-{k}", [make_rollout(make_completion(k), reference=[-9.0])]) for k in range(4)
    ]
    source = DatasetGroups(RolloutPool(serving_fleet(FakeSampler()), reference, {}), [groups], seed=0)

    async def all_of_them() -> list[RolloutGroup]:
        return list(await asyncio.gather(*(source.group(number) for number in range(8))))

    found = sorted(
        run_virtually(all_of_them()), key=lambda group: group.rollouts[0].completion.token_ids_T[-1]
    )
    assert reference.num_started == 4
    for group, k in zip(found, (0, 0, 1, 1, 2, 2, 3, 3), strict=True):
        [rollout] = group.rollouts
        assert rollout.completion is groups[k].rollouts[0].completion
        assert rollout.score == groups[k].rollouts[0].score
        assert rollout.reference_logprobs_T[-1] == pytest.approx(math.log(0.5))


def test_no_two_groups_of_a_run_have_one_name(tmp_path: Path) -> None:
    """Those of two datasets or two earlier runs have, and a small dataset's come several times in a step. Read
    back, they are what they were."""
    prompts = [make_prompt(k, text=f"prompt {k}") for k in range(4)]
    pairs = [
        [make_rollout(make_completion(5, prompt=prompt), score=s) for s in (1.0, 0.0)] for prompt in prompts
    ]
    runs = [
        [make_group("group-0", pairs[0]), make_group("group-1", pairs[1])],
        [make_group("group-0", pairs[2])],
    ]
    texts = DemonstrationGroup(
        group_id="dataset-0", demonstrations=(make_demonstration(6, prompt=prompts[3]),)
    )
    pool = RolloutPool(serving_fleet(FakeSampler()), FakeScorer(flat_reference), {})
    source = DatasetGroups(pool, [*runs, [texts]], seed=0)

    async def twelve() -> list[RolloutGroup]:
        return [await source.group(number) for number in range(12)]

    file = tmp_path / "step-000001.jsonl"
    drawn = run_virtually(twelve())
    file.write_text(
        "".join(json.dumps(row) + "\n" for group in drawn for row in rows_of(group)), encoding="utf-8"
    )
    read = load_step(file)
    assert len({group.group_id for group in drawn}) == 12
    assert [(group.prompt.text, len(group.rollouts)) for group in read] == [
        (group.prompt.text, len(group.rollouts)) for group in drawn
    ]
    assert {group.prompt.text for group in read} == {prompt.text for prompt in prompts}


def test_a_text_that_could_not_be_scored_is_scored_when_it_is_asked_for_again() -> None:
    """Its learner may have been replaced since."""

    class Reference:
        num_asked = 0

        async def score(self, completion: Any) -> Any:
            self.num_asked += 1
            if self.num_asked == 1:
                raise LearnerLost("learner rank 0 died")
            return flat_reference(completion)

    reference = Reference()
    groups = [make_group("group-0", [make_rollout(make_completion(5), reference=[-9.0])])]
    source = DatasetGroups(RolloutPool(serving_fleet(FakeSampler()), reference, {}), [groups], seed=0)

    async def ask_three_times() -> None:
        with pytest.raises(LearnerLost):
            await source.group(0)
        assert (await source.group(0)).rollouts is (await source.group(0)).rollouts

    run_virtually(ask_three_times())
    assert reference.num_asked == 2


class FakeLedger:
    """Accepts the first group of each number."""

    def __init__(self, *, stale: bool = False) -> None:
        self.kept: dict[int, RolloutGroup] = {}
        self._stale = stale

    def durable(self, number: int) -> RolloutGroup | None:
        return self.kept.get(number)

    def lease(self, number: int) -> int:
        return number

    def acknowledge(self, lease: int, group: RolloutGroup) -> bool:
        if self._stale:
            self.kept[lease] = make_group("accepted before", group.rollouts)
            return False
        self.kept[lease] = group
        return True


class CountingSource:
    on_policy = True

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def group(self, number: int) -> RolloutGroup:
        self.asked.append(number)
        return make_group(f"group-{number}", [make_rollout(make_completion(number))])


def test_what_was_journaled_is_not_sampled_again() -> None:
    source, ledger = CountingSource(), FakeLedger()
    first = run_virtually(JournaledGroups(source, ledger).group(5))
    again = run_virtually(JournaledGroups(source, ledger).group(5))
    assert (source.asked, again) == ([5], first)
    assert ledger.kept == {5: first}


def test_a_refused_group_gives_way_to_the_one_that_was_accepted() -> None:
    group = run_virtually(JournaledGroups(CountingSource(), FakeLedger(stale=True)).group(5))
    assert group.group_id == "accepted before"


class Killing(FakeSampler):
    """Dies of every request whose seed is below 3004."""

    async def sample(self, requests: Sequence[SampleRequest]) -> AsyncGenerator[Completion, None]:
        if requests[0].seed < 3_004:
            self.kill()
        async for completion in super().sample(requests):
            yield completion


def lost_groups(*, replace_lost: bool) -> tuple[list[Any], RolloutGroup]:
    """Group 3 of a run whose first two prompts kill every worker that they are given to."""
    discarded: list[Any] = []

    async def scenario() -> RolloutGroup:
        fleet: Fleet[Any] = Fleet("rollout", Killing, faults=FaultsConfig(max_retries=1), start_s=1e4)
        rewards = {"one": WeightedReward(server=FakeScorer(lambda completion: 1.0), weight=1.0)}
        pool = RolloutPool(fleet, FakeScorer(flat_reference), rewards, max_retries=1)
        await fleet.start(2)
        source = SampledGroups(
            pool,
            SeededStream([PROMPTS], seed=0),
            group_size=2,
            max_resamples=0,
            replace_lost=replace_lost,
            seed=0,
            on_discard=lambda *discard: discarded.append(discard),
        )

        async def pack() -> tuple[WeightManifest, dict[str, float]]:
            return make_manifest(0), {}

        try:
            await pool.push_weights(pack)
            return await source.group(3)
        finally:
            await fleet.close()

    return discarded, run_virtually(scenario())


def test_a_group_that_is_lost_with_every_worker_is_replaced_and_counted() -> None:
    discarded, group = lost_groups(replace_lost=True)
    assert discarded == [(3, 2, "workers lost")] * 2
    assert [r.completion.token_ids_T[-1] for r in group.rollouts] == [3_004, 3_005]
    assert group.group_id == "group-3"


def test_a_group_that_is_lost_ends_the_run_where_that_is_asked_for() -> None:
    with pytest.raises(RetriesExhausted, match="group-3-0: 2 rollout workers were lost on it"):
        lost_groups(replace_lost=False)


def unrewarded(*, failing: Sequence[int], replace: bool) -> tuple[list[Any], RolloutGroup]:
    """Group 3 of a run whose reward function raises for completions of these seeds."""
    discarded: list[Any] = []

    def reward(completion: Completion) -> float:
        if int(completion.token_ids_T[-1]) in failing:
            raise RewardError("reward function x raised KeyError")
        return 1.0

    rewards = {"x": WeightedReward(server=FakeScorer(reward), weight=1.0)}
    pool = RolloutPool(serving_fleet(FakeSampler()), FakeScorer(flat_reference), rewards)
    source = SampledGroups(
        pool,
        SeededStream([PROMPTS], seed=0),
        group_size=2,
        max_resamples=0,
        replace_unrewarded=replace,
        seed=0,
        on_discard=lambda *discard: discarded.append(discard),
    )
    return discarded, run_virtually(source.group(3))


def test_a_group_whose_reward_fails_is_replaced_as_a_whole_where_that_is_asked_for() -> None:
    discarded, group = unrewarded(failing=[3_001], replace=True)
    assert discarded == [(3, 2, "reward failed")]
    assert seeds_of(group) == [3_002, 3_003]


def test_a_reward_that_fails_ends_the_run_otherwise() -> None:
    with pytest.raises(RewardError, match="reward function x raised KeyError"):
        unrewarded(failing=[3_001], replace=False)


def test_a_reward_that_fails_for_every_prompt_ends_the_run_in_any_case() -> None:
    with pytest.raises(RewardError, match="reward function x raised KeyError"):
        unrewarded(failing=range(3_000, 4_000), replace=True)
