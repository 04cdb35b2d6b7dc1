"""What is measured on held-out prompts and texts, before and after, and what a resumed run still knows of it."""

import math
import shutil
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
    """Finds texts as likely as it is told, and saves them as its model."""

    def __init__(self) -> None:
        self.nll = 0.0
        self.reward = 1.0

    async def save_model(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # as the real one does
        folder.mkdir()
        (folder / "weights").write_text(str(self.nll))

    async def mean_nll(self, texts: Sequence[Demonstration]) -> float:
        assert list(texts) == list(TEXTS.demonstrations)
        return self.nll


def held_out(folder: Path, learner: Learner, texts: DemonstrationGroup | None = TEXTS) -> HeldOut:
    """As a process of a run makes it, anew when the run is resumed. Completions are given the learner's reward."""
    rewards = {"one": WeightedReward(server=FakeScorer(lambda completion: learner.reward), weight=1.0)}
    pool = RolloutPool(serving_fleet(FakeSampler()), FakeScorer(flat_reference), rewards)
    inputs: Any = SimpleNamespace(
        heldout_prompts=[make_prompt(1), make_prompt(2)], heldout_texts=texts, decode=str
    )
    recipe: Any = SimpleNamespace(seed=0, trainer=SimpleNamespace(best_of=0, save_model=True))
    workers: Any = SimpleNamespace(pool=pool, learner=learner)
    run_folder: Any = SimpleNamespace(path=folder)
    return HeldOut(recipe, inputs, workers, run_folder, note=print)


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


def test_the_best_model_is_of_a_version_that_the_run_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is cut off after version 6 did best, and goes on from the checkpoint of version 4."""
    learner, folder = Learner(), tmp_path / "model-best"

    def evaluated(heldout: HeldOut, version: int, score: float) -> None:
        learner.nll = version + score
        learner.reward = score
        run_virtually(heldout.on_the_way(version))

    def best(heldout: HeldOut) -> Any:
        found = heldout._selection.best
        return found and (found["step"], found["reward_mean"])

    first = held_out(tmp_path, learner)
    first.resume(0)
    evaluated(first, 2, 0.5)
    evaluated(first, 6, 0.9)
    assert (best(first), (folder / "weights").read_text()) == ((6, 0.9), "6.9")
    again = held_out(tmp_path, learner)
    again.resume(6)
    assert best(again) == (6, 0.9)
    again.resume(4)
    assert not folder.exists()
    assert best(again) is None, "the model of version 2 is gone as well"
    assert "model-best was of step 6, which the run no longer has" in capsys.readouterr().out
    evaluated(again, 6, 0.45)
    evaluated(again, 8, 0.4)
    assert (best(again), (folder / "weights").read_text()) == ((6, 0.45), "6.45")
    later = held_out(tmp_path, learner)
    later.resume(8)
    assert best(later) == (6, 0.45), "and not version 2, which did better"
    assert [record["step"] for record in later._selection.records] == [2, 6, 8]
