"""Ranks of the learner as Ray workers: one that stalls is named, and the group starts anew from a checkpoint."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from core.config import ModelConfig, Resources
from core.decoding import Decoding
from core.errors import LearnerLost
from core.messages import RolloutGroup
from learner.algorithm_config import RLOOConfig
from learner.config import KLConfig, LearnerConfig
from learner.group import LearnerGroup
from learner.worker import LearnerSetup, LearnerWorker
from tests.learner.learner_rank import LONGEST, VOCABULARY, Rank
from tests.tiny_models import build_tiny_model

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

LEARN_S = 20.0
"""Many times what a step takes on two busy cores."""
START_S = 200.0


class NappingWorker(LearnerWorker):
    """Its rank 1 falls asleep over a step whose first group says so."""

    def train_step(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        if self._rank == 1 and groups[0].group_id.startswith("7-"):
            nap()
        return super().train_step(groups)


def nap() -> None:
    time.sleep(600)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two steps, a rank that sleeps, a rank that is stopped; after each the group starts anew."""
    folder = tmp_path_factory.mktemp("group")
    build_tiny_model(folder / "policy", vocabulary=VOCABULARY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("learner.group.LearnerWorker", NappingWorker)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            return asyncio.run(tell(folder))
        finally:
            ray.shutdown()


async def tell(folder: Path) -> dict[str, Any]:
    source = Rank(0, 2, folder)
    group = LearnerGroup(setup(folder / "policy"), ["DEFAULT"] * 2, learn_s=LEARN_S, push_s=LEARN_S)
    await group.start()
    await group.train_step(source.groups(0))
    await group.save(folder / "checkpoint")
    told: dict[str, Any] = {"uninterrupted": await group.train_step(source.groups(1))}
    told["sleeping"] = await lost(group, source.groups(7))
    await group.restart()
    told["version"] = await group.load(folder / "checkpoint")
    victim = group._processes[1].pid
    os.kill(victim, signal.SIGSTOP)
    told["pid"], told["stopped"] = victim, await lost(group, source.groups(1))
    await group.restart()
    told["left"] = Path(f"/proc/{victim}").exists()
    await group.load(folder / "checkpoint")
    told["again"] = await group.train_step(source.groups(1))
    await group.close()
    return told


async def lost(group: LearnerGroup, groups: Sequence[RolloutGroup]) -> str:
    with pytest.raises(LearnerLost) as caught:
        await group.train_step(groups)
    return str(caught.value)


def setup(model: Path) -> LearnerSetup:
    return LearnerSetup(
        model_source=model,
        model=ModelConfig(path=str(model), max_model_len=64),
        value_model_source=None,
        push_adapters=False,
        config=LearnerConfig(
            world_size=2, zero_stage=2, learning_rate=1e-3, resources=Resources(num_cpus=0.5, threads=1)
        ),
        algorithm=RLOOConfig(kind="rloo"),
        kl=KLConfig(),
        decoding=Decoding(),
        max_new_tokens=LONGEST,
        seed=0,
        pretraining=None,
        num_steps=10,
        probe_token_ids_T=np.arange(8, dtype=np.int32),
        max_probe_gap=1e-3,
        deadline_s=START_S,
    )


def test_a_rank_stuck_in_python_is_named_with_where_it_is(story: dict[str, Any]) -> None:
    culprit, waiting = story["sleeping"].split("; ")
    assert culprit.startswith(
        "learner rank 1 did not answer within 20 s (learning): at nap (test_group_real.py:"
    )
    assert "< train_step (test_group_real.py:" in culprit
    assert waiting.startswith(
        "learner rank 0 did not answer within 20 s (learning): waits for the others at "
    )
    assert "(distributed_c10d.py:" in waiting


def test_a_rank_that_is_stopped_is_said_to_be_stopped(story: dict[str, Any]) -> None:
    culprit, waiting = story["stopped"].split("; ")
    expected = (
        f"learner rank 1 did not answer within 20 s (learning): process {story['pid']} is stopped, as by"
    )
    assert culprit.startswith(expected)
    assert waiting.startswith(
        "learner rank 0 did not answer within 20 s (learning): waits for the others at "
    )


def test_after_a_stall_the_group_goes_on_from_the_checkpoint_bit_for_bit(story: dict[str, Any]) -> None:
    assert story["version"] == 1
    assert not story["left"], "the stopped process has ended"
    timings = {"learn_s"}
    assert {key: story["again"][key] for key in story["again"].keys() - timings} == {
        key: value for key, value in story["uninterrupted"].items() if key not in timings
    }
