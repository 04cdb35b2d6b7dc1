"""The rollout pool over handles without Ray, on a clock without waiting."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np
import pytest

from actors.config import FaultsConfig
from actors.fleet import Fleet
from actors.rollout import RolloutPool, WeightedReward
from core.errors import LearnerLost, RetriesExhausted, UserError, WorkerError, WorkerLost
from core.messages import Completion, Demonstration, DemonstrationGroup, Float32s, RolloutGroup, SampleRequest
from core.weights import WeightManifest
from tests.fakes import (
    FakeSampler,
    FakeScorer,
    flat_reference,
    make_demonstration,
    make_manifest,
    make_prompt,
    run_virtually,
    serving_fleet,
)

PROMPT = make_prompt(1, 2, text="the prompt")


def seed_of(completion: Completion) -> float:
    return float(completion.token_ids_T[-1])


def make_pool(
    *samplers: FakeSampler,
    reference: FakeScorer | None = None,
    rewards: dict[str, WeightedReward] | None = None,
) -> RolloutPool:
    return RolloutPool(
        serving_fleet(*samplers),
        reference or FakeScorer(flat_reference),
        rewards or {"seed": WeightedReward(server=FakeScorer(seed_of), weight=1.0)},
    )


def roll_out(pool: RolloutPool, seeds: Sequence[int]) -> RolloutGroup:
    return run_virtually(pool.roll_out(PROMPT, group_id="group-7", seeds=seeds))


def test_rollouts_of_a_group_lie_in_the_order_of_their_seeds() -> None:
    """However they finish, and however many they are: as texts, "10" would come before "2"."""
    seeds = list(range(100, 112))
    sampler = FakeSampler(delay_s=lambda request: (request.seed * 7) % 5)
    group = roll_out(make_pool(sampler), seeds)
    assert [seed_of(rollout.completion) for rollout in group.rollouts] == seeds
    assert [request.seed for request in sampler.requests] == seeds
    assert group.group_id == "group-7"
    assert len({rollout.completion.request_id for rollout in group.rollouts}) == 12
    assert group.prompt is PROMPT


def test_a_rollout_holds_every_reward_and_their_weighted_sum() -> None:
    rewards = {
        "seed": WeightedReward(server=FakeScorer(seed_of, delay_s=3.0), weight=0.5),
        "length": WeightedReward(server=FakeScorer(lambda c: float(len(c.token_ids_T))), weight=-2.0),
        "watched": WeightedReward(server=FakeScorer(lambda c: 99.0), weight=0.0),
    }
    group = roll_out(make_pool(FakeSampler(), rewards=rewards), [10, 20])
    assert [dict(rollout.rewards) for rollout in group.rollouts] == [
        {"seed": 10.0, "length": 3.0, "watched": 99.0},
        {"seed": 20.0, "length": 3.0, "watched": 99.0},
    ]
    assert [rollout.score for rollout in group.rollouts] == [0.5 * 10 - 2 * 3, 0.5 * 20 - 2 * 3]


def test_each_completion_meets_its_own_reference() -> None:
    def reference(completion: Completion) -> Float32s:
        return (completion.sampled_T * -seed_of(completion)).astype(np.float32)

    sampler = FakeSampler(delay_s=lambda request: 20.0 - request.seed)
    group = roll_out(make_pool(sampler, reference=FakeScorer(reference)), [3, 5, 9])
    assert [rollout.reference_logprobs_T.tolist() for rollout in group.rollouts] == [
        [0.0, 0.0, -3.0],
        [0.0, 0.0, -5.0],
        [0.0, 0.0, -9.0],
    ]


def test_a_completion_is_scored_while_others_are_still_sampled() -> None:
    sampler = FakeSampler(delay_s=lambda request: 100.0 * (request.seed == 2))
    reference = FakeScorer(flat_reference, delay_s=1.0)

    async def look_early() -> int:
        pool = make_pool(sampler, reference=reference)
        task = asyncio.create_task(pool.roll_out(PROMPT, group_id="g", seeds=[1, 2, 3]))
        await asyncio.sleep(50.0)
        started = reference.num_started
        await task
        return started

    assert run_virtually(look_early()) == 2


def test_groups_go_to_the_least_busy_rollout_worker() -> None:
    """Three groups of 4, 1 and 1 for two workers: the last two share the one that has less to do."""
    samplers = [FakeSampler(name, delay_s=lambda request: 1.0) for name in ("rollout-0", "rollout-1")]

    async def three_groups() -> list[int]:
        pool = make_pool(*samplers)
        tasks = []
        for number, size in enumerate((4, 1, 1)):
            tasks.append(asyncio.create_task(pool.roll_out(PROMPT, group_id=f"{number}", seeds=range(size))))
            await asyncio.sleep(0.01)
        running = [sampler.num_running for sampler in samplers]
        await asyncio.gather(*tasks)
        return running

    assert run_virtually(three_groups()) == [4, 2]
    assert [sampler.num_running for sampler in samplers] == [0, 0]


@pytest.mark.parametrize("broken", ["reference", "reward"])
def test_the_error_of_a_scorer_surfaces_as_it_is_and_ends_the_group(broken: str) -> None:
    def fail(completion: Completion) -> float:
        if seed_of(completion) == 1:
            raise UserError("reward function x raised KeyError")
        return seed_of(completion)

    slow = FakeScorer(flat_reference, delay_s=1000.0)
    failing = FakeScorer(fail, delay_s=1.0)
    sampler = FakeSampler()
    pool = make_pool(
        sampler,
        reference=failing if broken == "reference" else slow,
        rewards={"x": WeightedReward(server=slow if broken == "reference" else failing, weight=1.0)},
    )

    async def fails_at() -> float:
        loop = asyncio.get_running_loop()
        with pytest.raises(UserError, match="^reward function x raised KeyError$"):
            await pool.roll_out(PROMPT, group_id="g", seeds=[1, 2, 3])
        assert slow.num_cancelled == slow.num_started == 3
        return loop.time()

    assert run_virtually(fails_at()) < 2.0
    assert sampler.num_running == 0


def test_an_error_of_a_scorer_does_not_wait_for_the_last_completion() -> None:
    def fail(completion: Completion) -> float:
        raise UserError("broken reward")

    sampler = FakeSampler(delay_s=lambda request: 1000.0 * (request.seed == 2))
    pool = make_pool(sampler, rewards={"x": WeightedReward(server=FakeScorer(fail), weight=1.0)})

    async def fails_at() -> float:
        with pytest.raises(UserError, match="broken reward"):
            await pool.roll_out(PROMPT, group_id="g", seeds=[1, 2])
        return asyncio.get_running_loop().time()

    assert run_virtually(fails_at()) < 10.0
    assert sampler.num_running == 0


class BreakingSampler(FakeSampler):
    async def sample(self, requests: Sequence[SampleRequest]) -> AsyncGenerator[Completion, None]:
        async for completion in super().sample(requests):
            yield completion
            await asyncio.sleep(5.0)
            raise RuntimeError("rollout-0 died")


def test_the_error_of_a_rollout_worker_surfaces_and_ends_the_scoring() -> None:
    slow = FakeScorer(flat_reference, delay_s=1000.0)

    async def fails() -> None:
        with pytest.raises(RuntimeError, match="^rollout-0 died$"):
            await make_pool(BreakingSampler(), reference=slow).roll_out(PROMPT, group_id="g", seeds=[1, 2])
        await asyncio.sleep(1.0)

    run_virtually(fails())
    assert slow.num_cancelled == slow.num_started == 1


async def pack_version_5() -> tuple[WeightManifest, dict[str, float]]:
    return make_manifest(5), {"pack_s": 0.5}


def test_every_rollout_worker_pulls_the_weights() -> None:
    samplers = [FakeSampler("rollout-0"), FakeSampler("rollout-1")]
    timing, reports = run_virtually(make_pool(*samplers).push_weights(pack_version_5))
    assert [sampler.version for sampler in samplers] == [5, 5]
    assert reports == [sampler.pull_report for sampler in samplers]
    assert timing == {"pack_s": 0.5}


class SlowForShortTexts:
    """A reference: minus the last token, in nats, for every token of the text."""

    async def score(self, text: Completion | Demonstration) -> Float32s:
        await asyncio.sleep(10.0 - len(text.token_ids_T))
        return (text.sampled_T * -float(text.token_ids_T[-1])).astype(np.float32)


def test_texts_of_a_dataset_become_rollouts_of_the_reference() -> None:
    texts = (
        make_demonstration(3, prompt=PROMPT, score=4.0, text=" short"),
        make_demonstration(4, 5, prompt=PROMPT, score=-1.5, text=" longer"),
    )
    sampler, reward = FakeSampler(), FakeScorer(seed_of)
    rewards = {"seed": WeightedReward(server=reward, weight=2.0)}
    pool = RolloutPool(serving_fleet(sampler), SlowForShortTexts(), rewards)
    group = run_virtually(
        pool.score_demonstrations(DemonstrationGroup(group_id="dataset-7", demonstrations=texts))
    )
    assert (group.group_id, group.policy_version) == ("dataset-7", 0)
    assert group.prompt is PROMPT
    assert [rollout.completion.request_id for rollout in group.rollouts] == ["dataset-7-0", "dataset-7-1"]
    assert [rollout.reference_logprobs_T.tolist() for rollout in group.rollouts] == [
        [0.0, 0.0, -3.0],
        [0.0, 0.0, -5.0, -5.0],
    ]
    assert [(r.score, dict(r.rewards)) for r in group.rollouts] == [
        (4.0, {"dataset": 4.0}),
        (-1.5, {"dataset": -1.5}),
    ]
    for rollout, text in zip(group.rollouts, texts, strict=True):
        completion = rollout.completion
        assert completion.token_ids_T.tolist() == text.token_ids_T.tolist()
        assert completion.sampled_T.tolist() == text.sampled_T.tolist()
        assert completion.behavior_logprobs_T.tolist() == rollout.reference_logprobs_T.tolist()
        assert (completion.text, completion.truncated, rollout.kl_nats) == (text.text, False, 0.0)
    (span,) = group.rollouts[1].completion.version_spans
    assert (span.policy_version, span.start, span.stop) == (0, 0, 2)
    assert (sampler.requests, reward.num_started) == ([], 0)


def test_the_texts_of_a_group_are_scored_at_the_same_time() -> None:
    async def duration_s() -> float:
        texts = tuple(make_demonstration(token) for token in range(5))
        pool = make_pool(FakeSampler(), reference=FakeScorer(flat_reference, delay_s=3.0))
        await pool.score_demonstrations(DemonstrationGroup(group_id="d", demonstrations=texts))
        return asyncio.get_running_loop().time()

    assert run_virtually(duration_s()) == 3.0


class BreakingReference:
    """Fails on the text that ends with token 1; takes very long for others."""

    num_cancelled = 0

    async def score(self, text: Completion | Demonstration) -> Float32s:
        try:
            await asyncio.sleep(1.0 if text.token_ids_T[-1] == 1 else 1000.0)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        raise UserError("reference-0 died")


def test_an_error_of_the_reference_on_a_text_surfaces_as_it_is_and_ends_the_group() -> None:
    texts = tuple(make_demonstration(token) for token in (0, 1, 2))
    reference = BreakingReference()
    pool = RolloutPool(serving_fleet(), reference, {})

    async def fails_at() -> float:
        with pytest.raises(UserError, match="^reference-0 died$"):
            await pool.score_demonstrations(DemonstrationGroup(group_id="d", demonstrations=texts))
        return asyncio.get_running_loop().time()

    assert run_virtually(fails_at()) == 1.0
    assert reference.num_cancelled == 2


class DyingSampler(FakeSampler):
    """Delivers the first completion, and dies."""

    async def sample(self, requests: Sequence[SampleRequest]) -> AsyncGenerator[Completion, None]:
        async for completion in super().sample(requests):
            yield completion
            self.kill()
            raise WorkerLost(f"{self.name} died (sampling)")


def test_what_a_dying_worker_has_delivered_is_kept_and_the_rest_sampled_by_another() -> None:
    """With the same seeds, so that the group is the one that it would have been."""
    dying, other = DyingSampler("rollout-0"), FakeSampler("rollout-1")
    group = roll_out(make_pool(dying, other), [11, 12, 13])
    assert [seed_of(rollout.completion) for rollout in group.rollouts] == [11, 12, 13]
    assert [request.seed for request in other.requests] == [12, 13]


class RefusingSampler(FakeSampler):
    """Cannot take new weights and then serves nobody, as `Sampler`: who waited behind the pull hears of it."""

    is_refused = False

    async def pull_weights(self, manifest: WeightManifest, *, deadline_s: float) -> Any:
        self.is_refused = True
        raise WorkerError("the probe differs by 1.3 nats")

    async def sample(self, requests: Sequence[SampleRequest]) -> AsyncGenerator[Completion, None]:
        await asyncio.sleep(1.0)
        if self.is_refused:
            raise WorkerLost(f"{self.name} has had no verified weight push")
        async for completion in super().sample(requests):
            yield completion


def test_prompts_that_wait_behind_a_pull_that_fails_go_to_another_worker() -> None:
    pool = make_pool(RefusingSampler("rollout-0"), FakeSampler("rollout-1"))

    async def scenario() -> RolloutGroup:
        group = asyncio.create_task(pool.roll_out(PROMPT, group_id="g", seeds=[11, 12]))
        await asyncio.sleep(0.5)
        await pool.push_weights(pack_version_5)
        return await group

    group = run_virtually(scenario())
    assert [seed_of(rollout.completion) for rollout in group.rollouts] == [11, 12]


def test_a_push_that_nobody_takes_says_why_although_prompts_wait_behind_it() -> None:
    pool = make_pool(RefusingSampler("rollout-0"), RefusingSampler("rollout-1"))

    async def scenario() -> None:
        group = asyncio.create_task(pool.roll_out(PROMPT, group_id="g", seeds=[11]))
        await asyncio.sleep(0.5)
        try:
            await pool.push_weights(pack_version_5)
        finally:
            group.cancel()

    with pytest.raises(WorkerError, match="the probe differs") as info:
        run_virtually(scenario())
    assert not isinstance(info.value, WorkerLost)


def test_completions_that_kill_every_worker_end_in_an_error_that_names_them() -> None:
    pool = make_pool(*(DyingSampler(f"rollout-{index}") for index in range(4)))
    with pytest.raises(RetriesExhausted, match="g-3: 3 rollout workers were lost on it; the last: rollout-2"):
        run_virtually(pool.roll_out(PROMPT, group_id="g", seeds=range(5)))


def test_a_worker_that_comes_late_has_the_present_weights_before_it_serves() -> None:
    started: list[FakeSampler] = []

    def launch(name: str) -> FakeSampler:
        started.append(FakeSampler(name, version=-1))
        return started[-1]

    async def scenario() -> list[int]:
        fleet: Fleet[Any] = Fleet("rollout", launch, faults=FaultsConfig(), start_s=100)
        pool = RolloutPool(fleet, FakeScorer(flat_reference), {})
        await fleet.start(1)
        await asyncio.sleep(10.0)
        early = [str(slot.state) for slot in fleet.slots]
        await pool.push_weights(pack_version_5)
        fleet.scale(2)
        await asyncio.sleep(1.0)
        assert (early, [str(slot.state) for slot in fleet.slots]) == (["stale"], ["serving", "serving"])
        assert pool.policy_version == 5
        await fleet.close()
        return [sampler.version for sampler in started]

    assert run_virtually(scenario()) == [5, 5]


class AwayLearner:
    """While it is away nobody can read the weights that it packed."""

    is_away = False

    async def pack(self) -> tuple[WeightManifest, dict[str, float]]:
        if self.is_away:
            raise LearnerLost("learner rank 0 died (packing weights)")
        return make_manifest(5), {}


@pytest.mark.parametrize("dies_while_packing", [False, True])
def test_workers_that_come_up_while_the_learner_is_away_wait_for_its_next_push(
    dies_while_packing: bool,
) -> None:
    learner = AwayLearner()
    started: list[FakeSampler] = []

    class Sampler(FakeSampler):
        async def pull_weights(self, manifest: WeightManifest, *, deadline_s: float) -> Any:
            if learner.is_away:
                raise WorkerError("weight push: the buffer cannot be read")
            return await super().pull_weights(manifest, deadline_s=deadline_s)

    def launch(name: str) -> FakeSampler:
        started.append(Sampler(name, version=-1))
        return started[-1]

    async def scenario() -> None:
        fleet: Fleet[Any] = Fleet("rollout", launch, faults=FaultsConfig(), start_s=100)
        pool = RolloutPool(fleet, FakeScorer(flat_reference), {})
        await fleet.start(1)
        await pool.push_weights(learner.pack)
        learner.is_away = True
        if dies_while_packing:
            with pytest.raises(LearnerLost):
                await pool.push_weights(learner.pack)
        else:
            pool.forget_weights()
        fleet.scale(2)
        await asyncio.sleep(300.0)
        assert [str(slot.state) for slot in fleet.slots] == ["serving", "stale"]
        assert pool.policy_version == 5, "of those who serve"
        learner.is_away = False
        await pool.push_weights(learner.pack)
        assert [str(slot.state) for slot in fleet.slots] == ["serving", "serving"]
        await fleet.close()

    run_virtually(scenario())
    assert [sampler.version for sampler in started] == [5, 5]


def test_the_pool_says_how_long_completions_waited_for_scores_and_how_long_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = make_pool(
        FakeSampler(),
        reference=FakeScorer(flat_reference, delay_s=2.0),
        rewards={"x": WeightedReward(server=FakeScorer(lambda completion: 1.0, delay_s=3.0), weight=1.0)},
    )

    async def drive() -> list[dict[str, float]]:
        monkeypatch.setattr("time.perf_counter", asyncio.get_running_loop().time)
        first = pool.take_figures()
        await pool.roll_out(PROMPT, group_id="g", seeds=[1, 2, 3])
        return [first, pool.take_figures(), pool.take_figures()]

    assert run_virtually(drive()) == [
        {},
        {
            "wait_reward_s": pytest.approx(3.0),
            "wait_reference_s": pytest.approx(2.0),
            "sampled_length": 1.0,
            "newly_sampled_tokens": 3,
        },
        {"sampled_length": 1.0, "newly_sampled_tokens": 0},
    ]


def test_completions_that_are_sampled_again_are_counted_as_retries() -> None:
    fleet = serving_fleet(DyingSampler("rollout-0"), FakeSampler("rollout-1"))
    pool = RolloutPool(fleet, FakeScorer(flat_reference), {})
    roll_out(pool, [11, 12, 13])
    assert fleet.num_retries == 1
