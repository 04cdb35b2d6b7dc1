"""Reward functions that take all memory or all time, in real Ray workers: named, replaced, never a zero."""

import asyncio
from pathlib import Path

import pytest

from actors.config import FaultsConfig, RewardFunctionReward, RolloutConfig
from actors.handles import ScorerFleet, ScorerHandle
from actors.worker import ActorSetup
from core.config import ModelConfig
from core.errors import RetriesExhausted, RewardError
from core.messages import Completion
from orchestration.cluster.launch import joined
from tests.fakes import make_completion, make_prompt

pytestmark = [pytest.mark.real, pytest.mark.timeout(200)]

REWARD = "tests.actors.reward_service.odd_reward:reward"
START_S = 100.0
SCORE_S = 10.0


def completion(text: str) -> Completion:
    return make_completion(5, prompt=make_prompt(text="p"), text=text)


async def misbehave(events: list[str]) -> tuple[list[float], list[str]]:
    """The process that scored at first, after memory ran out, and after time did; and what was said of both."""
    config = RewardFunctionReward(kind="function", name="odd", function=REWARD, memory_gib=0.25)
    setup = ActorSetup(model_source=Path(), model=ModelConfig(path="unused"), rollout=RolloutConfig())
    fleet = ScorerFleet(
        "reward-odd",
        lambda name: ScorerHandle(name, setup, config, None, deadline_s=SCORE_S),
        faults=FaultsConfig(max_retries=0, heartbeat_s=0.5),
        start_s=START_S,
        on_event=lambda worker, event: events.append(f"{worker} {event}"),
    )
    await fleet.start(1)
    try:
        processes = [await fleet.score(completion("who"))]
        with pytest.raises(RewardError) as hoarded:
            await fleet.score(completion("hoard"))
        async with asyncio.timeout(START_S):
            while not events:
                await asyncio.sleep(0.1)
        processes.append(await fleet.score(completion("who")))
        with pytest.raises(RetriesExhausted) as slept:
            await fleet.score(completion("hang"))
        processes.append(await fleet.score(completion("who")))
        return processes, [str(hoarded.value), str(slept.value)]
    finally:
        await fleet.close()


def test_a_function_without_an_end_to_its_memory_or_its_time_is_named_and_replaced() -> None:
    events: list[str] = []
    with joined(None):
        processes, (hoarded, slept) = asyncio.run(misbehave(events))
    assert len(set(processes)) == 3
    assert hoarded == (
        f"reward function {REWARD} reached its limit of 0.25 GiB of memory: raise memory_gib in its [[rewards]] "
        "table, or let it keep less"
    )
    assert "reward-odd-0 did not answer within 10 s (scoring)" in slept
    assert "odd_reward.py" in slept, "where the function hangs"
    assert [event.partition(":")[0] for event in events] == ["reward-odd-0 died", "reward-odd-0 serves"] * 2
