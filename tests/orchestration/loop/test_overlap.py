"""How long an asynchronous step takes, on a clock without waiting: workers wait as an accelerator would."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from actors.rollout import RolloutPool, WeightedReward
from core.messages import Completion, SampleRequest
from core.stream import SeededStream
from orchestration.loop.sources import SampledGroups
from orchestration.loop.trainer import Trainer
from orchestration.recipe.config import DeadlinesConfig
from tests.fakes import (
    FakeLearner,
    FakeSampler,
    FakeScorer,
    flat_reference,
    make_prompt,
    run_virtually,
    serving_fleet,
)
from tests.orchestration.loop.test_trainer import Events

PROMPTS_PER_STEP = 3
LEARN_S = 1.1
"""Of the fake learner: a second to train and a tenth to lay the weights out."""
NUM_STEPS = 40


class OneStepAtATime(FakeSampler):
    """Decodes as many groups at a time as a step has; each takes as long."""

    def __init__(self, name: str, *, rollout_s: float) -> None:
        super().__init__(name, delay_s=lambda request: rollout_s)
        self._slots = asyncio.Semaphore(PROMPTS_PER_STEP)

    async def sample(self, requests: Sequence[SampleRequest]) -> AsyncGenerator[Completion, None]:
        async with self._slots:
            async for completion in super().sample(requests):
                yield completion


def seconds_per_step(*, rollout_s: float, max_lag: int) -> float:
    learner = FakeLearner()
    rewards = {"one": WeightedReward(server=FakeScorer(lambda completion: 1.0), weight=1.0)}
    observer = Events()

    async def nothing(version: int) -> None: ...

    async def scenario() -> float:
        pool = RolloutPool(
            serving_fleet(OneStepAtATime("rollout-0", rollout_s=rollout_s)),
            FakeScorer(flat_reference),
            rewards,
        )
        source = SampledGroups(
            pool,
            SeededStream([[make_prompt(1)]], seed=0),
            group_size=2,
            max_resamples=0,
            seed=0,
            on_discard=lambda *discard: None,
        )
        trainer = Trainer(
            pool=pool,
            learner=learner,
            source=source,
            observer=observer,
            ledger=observer,
            prompts_per_step=PROMPTS_PER_STEP,
            max_lag=max_lag,
            deadlines=DeadlinesConfig(rollout_s=1e6),
        )
        await trainer.train(start=0, stop=NUM_STEPS, after_step=nothing)
        return asyncio.get_running_loop().time() / NUM_STEPS

    seconds = run_virtually(scenario())
    assert max(learner.lags) <= max_lag
    return seconds


@pytest.mark.parametrize("rollout_s", [0.4, 1.1, 3.0])
def test_an_asynchronous_step_takes_as_long_as_the_slower_of_the_two(rollout_s: float) -> None:
    larger = max(rollout_s, LEARN_S)
    assert larger <= seconds_per_step(rollout_s=rollout_s, max_lag=1) <= 1.1 * larger


@pytest.mark.parametrize("rollout_s", [0.4, 1.1, 3.0])
def test_a_synchronous_step_takes_as_long_as_both(rollout_s: float) -> None:
    assert seconds_per_step(rollout_s=rollout_s, max_lag=0) == pytest.approx(rollout_s + LEARN_S)
