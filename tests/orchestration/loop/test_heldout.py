"""What is measured on held-out prompts and texts, before and after, and what a resumed run still knows of it."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.rollout import RolloutPool, WeightedReward
from core.messages import Demonstration, DemonstrationGroup
from orchestration.loop.heldout import HeldOut
from tests.fakes import (
    FakeSampler,
    FakeScorer,
    flat_reference,
    make_demonstration,
    make_prompt,
    run_virtually,
    serving_fleet,
)

TEXTS = DemonstrationGroup(group_id="heldout-texts", demonstrations=(make_demonstration(5, 6),))


class Learner:
    """Finds texts as likely as it is told."""

    def __init__(self) -> None:
        self.nll = 0.0

    async def mean_nll(self, texts: Sequence[Demonstration]) -> float:
        assert list(texts) == list(TEXTS.demonstrations)
        return self.nll


def held_out(folder: Path, learner: Learner, texts: DemonstrationGroup | None = TEXTS) -> HeldOut:
    """As a process of a run makes it, anew when the run is resumed."""
    rewards = {"one": WeightedReward(server=FakeScorer(lambda completion: 1.0), weight=1.0)}
    pool = RolloutPool(serving_fleet(FakeSampler()), FakeScorer(flat_reference), rewards)
    inputs = SimpleNamespace(
        heldout_prompts=[make_prompt(1), make_prompt(2)], heldout_texts=texts, decode=str
    )
    recipe: Any = SimpleNamespace(seed=0, trainer=SimpleNamespace(best_of=0, save_model=True))
    workers: Any = SimpleNamespace(pool=pool, learner=learner)
    return HeldOut(recipe, inputs, workers, SimpleNamespace(path=folder))  # type: ignore[arg-type]


def perplexity_of(heldout: HeldOut) -> Any:
    return run_virtually(heldout.after(4, select=False))[1]["heldout_perplexity"]


def test_perplexity_is_measured_in_the_same_way_before_and_after(tmp_path: Path) -> None:
    """The reference's log-probs are at the sampling temperature: of an untrained policy they would be others."""
    learner = Learner()
    learner.nll = 3.0
    heldout = held_out(tmp_path, learner)
    run_virtually(heldout.before(0))
    assert perplexity_of(heldout) == {"before": math.exp(3.0), "after": math.exp(3.0)}
    learner.nll = 2.0
    assert perplexity_of(heldout)["after"] == math.exp(2.0)


def test_a_resumed_run_knows_the_perplexity_before_training(tmp_path: Path) -> None:
    learner = Learner()
    learner.nll = 3.0
    run_virtually(held_out(tmp_path, learner).before(0))
    learner.nll = 2.0
    resumed = held_out(tmp_path, learner)
    run_virtually(resumed.before(2))
    assert perplexity_of(resumed) == {"before": pytest.approx(math.exp(3.0)), "after": math.exp(2.0)}


def test_without_texts_there_is_no_perplexity(tmp_path: Path) -> None:
    heldout = held_out(tmp_path, Learner(), texts=None)
    run_virtually(heldout.before(0))
    assert perplexity_of(heldout) is None
