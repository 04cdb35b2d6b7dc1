"""What a run reads before its first process starts: which datasets suit its method, and which are refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.run_samples import rows_of
from core.errors import UserError
from core.messages import RolloutGroup
from orchestration.inputs import RunInputs
from orchestration.recipe.loading import load_recipe
from tests.fakes import make_completion, make_group, make_rollout, save_tiny_tokenizer
from tests.recipes import MINIMAL

SFT, DPO, REBEL = ('algorithm={kind="sft"}', 'algorithm={kind="dpo"}', 'algorithm={kind="rebel"}')
Inputs = Callable[..., RunInputs]


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    """Of a recipe with other settings than the shortest one."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    save_tiny_tokenizer(folder, "good", "bad", "film")
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (folder / "model.safetensors").touch()
    prompts = 'kind = "jsonl"\npath = "prompts.jsonl"'
    recipe = MINIMAL.replace("asset:tiny", str(folder)).replace('kind = "movie-reviews"', prompts)
    (tmp_path / "tiny.toml").write_text(recipe, encoding="utf-8")
    write(tmp_path / "prompts.jsonl", [{"prompt": f"film {number}"} for number in range(20)])
    return lambda *overrides: RunInputs(load_recipe(tmp_path / "tiny.toml", list(overrides)))


def write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(folder: Path, *scores: float, recipe: str = "") -> str:
    """Samples of an earlier run, of one prompt, and its table."""
    (folder / "samples").mkdir(parents=True)
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    group: RolloutGroup = make_group("g", [make_rollout(make_completion(5), score=score) for score in scores])
    write(folder / "samples" / "step-000001.jsonl", rows_of(group))
    return f'datasets=[{{kind="run", path="{folder}"}}]'


PREFERENCE = {"prompt": "film", "chosen": " good", "rejected": " bad"}
JSON_LINES = 'datasets=[{kind="jsonl", path="texts.jsonl"}]'


@pytest.mark.parametrize(
    ("learner", "setting"),
    [
        (REBEL, 'algorithm.kind = "rebel"'),
        ('algorithm={kind="rpo"}', 'algorithm.kind = "rpo"'),
        ('algorithm={kind="dpo", weight_by_reward=true}', "algorithm.weight_by_reward"),
    ],
)
def test_who_learns_from_gaps_is_given_ratings(
    inputs: Inputs, tmp_path: Path, learner: str, setting: str
) -> None:
    rated = PREFERENCE | {"score_chosen": 4, "score_rejected": 1}
    write(tmp_path / "texts.jsonl", [rated] * 3)
    found = inputs(learner, JSON_LINES)
    assert (len(found.datasets), found.steps_per_epoch(2)) == (1, 2)
    write(tmp_path / "texts.jsonl", [rated, PREFERENCE])
    with pytest.raises(
        UserError, match=f"texts.jsonl:2: says which .* not by how much, which {setting} learns"
    ):
        inputs(learner, JSON_LINES)
    assert inputs(DPO, JSON_LINES).datasets


def test_texts_that_are_worse_than_others_are_not_learned_by_likelihood(
    inputs: Inputs, tmp_path: Path
) -> None:
    write(tmp_path / "texts.jsonl", [{"text": "film"}, PREFERENCE])
    with pytest.raises(
        UserError, match=r"datasets.0 \(jsonl\): 1 of its 2 groups hold .* Set algorithm.top_k = 1 to learn"
    ):
        inputs(SFT, JSON_LINES)
    for method in ('algorithm={kind="sft", top_k=1}', DPO):
        assert inputs(method, JSON_LINES).datasets
    write(tmp_path / "texts.jsonl", [{"text": "film"}, {"prompt": "film", "completion": " bad", "score": 3}])
    assert [len(groups) for groups in inputs(SFT, JSON_LINES).datasets] == [2]


def test_several_samples_of_a_prompt_are_such_texts_too(inputs: Inputs, tmp_path: Path) -> None:
    table = write_run(tmp_path / "several", 1.0, 2.0)
    with pytest.raises(
        UserError, match=r"datasets.0 \(run\): 1 of its 1 groups hold texts of different score"
    ):
        inputs(SFT, table)
    for scores in ((1.0,), (1.0, 1.0)):
        assert inputs(SFT, write_run(tmp_path / f"equal-{len(scores)}", *scores)).datasets


def texts_of_a_run(recipe: str) -> str:
    """The recipe of an earlier run that learned from texts."""
    return recipe + '[[datasets]]\nkind = "jsonl"\npath = "x"\n'


@pytest.mark.parametrize(
    ("earlier", "now", "said"),
    [
        (
            "[rollout]\ntemperature = 0.7\ntop_p = 0.9\n",
            ["rollout.temperature=0.7"],
            "top_p = 0.9, and the policy's would be at top_p = 1.0, so .* Set rollout.top_p = 0.9, or",
        ),
        ('[rollout]\ntop_k = "none"\n', ["rollout.top_k=5"], 'at top_k = "none", and .* at top_k = 5, so'),
        ("[rollout]\ntemperature = 0.7\n", ["rollout.temperature=0"], "0.7, and .* at temperature = 1.0, so"),
        (texts_of_a_run("[rollout]\nmin_p = 0.1\n"), ["rollout.min_p=0.1"], "at min_p = 0.0, and"),
        ("temperature =", [], "recipe.toml, which says how its samples were decoded, cannot be read"),
    ],
)
def test_rebel_compares_log_probs_of_one_decoding(
    inputs: Inputs, tmp_path: Path, earlier: str, now: list[str], said: str
) -> None:
    table = write_run(tmp_path / "run", 1.0, 2.0, recipe=earlier)
    with pytest.raises(UserError, match=said):
        inputs(REBEL, table, *now)
    assert inputs(DPO, table, *now).datasets
    of_run = f'[[datasets]]\nkind = "run"\npath = "{tmp_path / "run"}"\n'
    with pytest.raises(UserError, match=said):  # its samples' log-probs are those of the first run
        inputs(REBEL, write_run(tmp_path / "again", 1.0, 2.0, recipe=of_run), *now)


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        ("", []),
        ("[rollout]\ntemperature = 0.7\ntop_p = 0.9\ntop_k = 4", ["temperature=0.7", "top_p=0.9", "top_k=4"]),
        (texts_of_a_run("[rollout]\nmin_p = 0.1\ntemperature = 0.7\n"), ["temperature=0.7"]),
    ],
)
def test_rebel_learns_from_a_run_that_sampled_alike(
    inputs: Inputs, tmp_path: Path, earlier: str, now: list[str]
) -> None:
    table = write_run(tmp_path / "run", 1.0, 2.0, recipe=earlier)
    assert inputs(REBEL, table, *(f"rollout.{setting}" for setting in now)).datasets
