"""A reward model that several runs need is trained once, whoever comes first, and whatever is cut off."""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from core.decoding import Decoding
from orchestration import inputs
from orchestration.inputs import train_reward_model
from orchestration.recipe.config import Recipe
from orchestration.recipe.files import find_recipe
from orchestration.recipe.loading import load_recipe


class Training:
    """In place of the real one: waits to be let go on, then writes a model."""

    def __init__(self) -> None:
        self.num_started = 0
        self.started, self.go_on = threading.Event(), threading.Event()
        self.fails = False
        self.samplings: list[Any] = []

    def __call__(self, config: object, *, folder: Path, **options: Any) -> None:
        self.num_started += 1
        self.samplings.append(options["sampling"])
        number = self.num_started
        (folder / "config.json").write_text(str(number))
        self.started.set()
        assert self.go_on.wait(60)
        assert (folder / "config.json").read_text() == str(number), "another one writes into this folder"
        if self.fails:
            raise RuntimeError("cut off")
        figures = {f"pairwise_accuracy_{margin}": 0.9 for margin in (0, 1, 2)} | {"seconds": 1.0}
        (folder / "metrics.json").write_text(json.dumps(figures))


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Training:
    training = Training()
    stage = ModuleType("learner.reward_stage")
    stage.train_reward_model = training  # type: ignore[attr-defined]
    stage.RatedSnippets = lambda config, **options: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "learner.reward_stage", stage)
    monkeypatch.setattr(inputs, "resolve_model", lambda path, revision: Path(path))
    monkeypatch.setattr(inputs, "check_model", lambda path, *, max_model_len: None)
    monkeypatch.setattr(inputs, "asset_path", lambda name: tmp_path / name)
    monkeypatch.setenv("LEASH_CACHE", str(tmp_path / "cache"))
    return training


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(find_recipe("movie-reviews"), ["reward_model.normalize_on=0"])


def test_two_that_need_one_reward_model_at_once_share_it(
    training: Training, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(train_reward_model, recipe)
        assert training.started.wait(60)
        second = pool.submit(train_reward_model, recipe)
        printed = ""
        while "waiting for another process" not in printed and not second.done() and training.num_started < 2:
            printed += capsys.readouterr().out
        training.go_on.set()
        assert first.result() == second.result()
    assert training.num_started == 1
    assert (first.result() / "config.json").read_text() == "1"


def test_a_training_that_was_cut_off_leaves_nothing_in_the_way(training: Training, recipe: Recipe) -> None:
    training.go_on.set()
    training.fails = True
    with pytest.raises(RuntimeError, match="cut off"):
        train_reward_model(recipe)
    training.fails = False
    folder = train_reward_model(recipe)
    assert (folder / "config.json").read_text() == "2"
    assert train_reward_model(recipe) == folder
    assert training.num_started == 2


def test_a_model_is_normalized_on_what_rollout_workers_sample_and_anew_if_that_changes(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.go_on.set()
    prompts = [np.array([1, 2], dtype=np.int32)]
    monkeypatch.setattr(inputs, "_normalized_on", lambda recipe, path: prompts)

    def folder(*overrides: str) -> Path:
        return train_reward_model(load_recipe(find_recipe("movie-reviews-dpo"), overrides))

    changes = ("temperature=0.7", "temperature=0", "top_k=5", "top_p=0.9", "min_p=0.1", 'stop=["."]')
    plain = folder()
    assert plain == folder("rollout.temperature=1.0", "rollout.group_size=2")
    assert len({plain, *(folder(f"rollout.{change}") for change in changes)}) == 7
    _, _, greedy, *_, stopped = training.samplings
    assert (greedy.is_greedy, greedy.decoding) == (True, Decoding())
    assert [sampling.decoding for sampling in training.samplings[3:6]] == [
        *(Decoding(top_k=5), Decoding(top_p=0.9), Decoding(min_p=0.1))
    ]
    assert (stopped.stop, stopped.is_greedy, stopped.max_new_tokens) == (["."], False, 24)
