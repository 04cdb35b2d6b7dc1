"""Methods beside the demo's, by `leash train` on a tiny random model: sampled groups, and datasets.

What each computes is compared on real DeepSpeed ranks in `tests/learner/test_learner_real.py`; here its parts meet.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.models import load_scalar_model
from core.packing import pack_row
from core.sample_files import step_file
from orchestration.loop.evaluation import load_samples
from tests.end_to_end.leash_process import leash, records
from tests.end_to_end.tiny_recipe import write_tiny_recipe

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

DEADLINE_S = 240
CHANGES = """\
[rollout]
top_p = 0.9

[algorithm]
kind = "grpo"

[learner.lora]
rank = 4

[trainer]
best_of = 3
"""
REWARD_MODEL = """\
base = "{base}"
rewards = [{{ kind = "model", name = "learned", resources = {{ num_cpus = 0.2, threads = 1 }} }}]

[reward_model]
num_layers = 2

[[reward_model.datasets]]
kind = "jsonl"
path = "{preferences}"

[algorithm]
kind = "ppo"
"""
ADAPTERS_AS_REFERENCE = (
    "reference.adapters_off=true",
    *('kl.placement="loss"', 'kl.estimator="exact"', "kl.kl_coef=0.1"),
)


@pytest.fixture(scope="module")
def recipe(tiny_model: Path, prompts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "methods.toml"
    return write_tiny_recipe(file, CHANGES, model=tiny_model, prompts=prompts_file)


@pytest.fixture(scope="module")
def texts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [{"prompt": f"The number {index} is", "completion": " one of many."} for index in range(9)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def grpo(recipe: Path, texts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters, pushed as such, whose base is the reference, the exact KL in the loss, and texts mixed
    in (ptx)."""
    texts = f'{{kind = "jsonl", path = "{texts_file}"}}'
    pretraining = f"pretraining={{coef = 0.5, texts_per_step = 4, datasets = [{texts}]}}"
    options = (*ADAPTERS_AS_REFERENCE, 'weight_push.form="adapters"', pretraining)
    return finish(tmp_path_factory.mktemp("runs") / "grpo", recipe, *options)


def finish(folder: Path, recipe: Path, *overrides: str, environment: Mapping[str, str] | None = None) -> Path:
    """The folder of a run that went to its end and left nothing behind."""
    log = folder.with_suffix(".log")
    process = leash("train", recipe, *overrides, "--run", folder, log=log, environment=environment)
    ended = process.wait(DEADLINE_S)
    assert ended.code == 0, ended.output[-4000:]
    assert process.left_behind() == []
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def samples_of(folder: Path, step: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in step_file(folder, step).read_text(encoding="utf-8").splitlines()]


def test_grpo_with_the_exact_kl_to_the_base_under_its_adapters(grpo: Path) -> None:
    found = records(grpo)
    # New adapters change nothing, so the first KL is what sampling from nine tenths of the probability costs.
    # The tiny model's tokens are all about as likely, so hardly more than that is kept.
    assert found[0]["kl_loss"] == pytest.approx(-math.log(0.9), abs=1e-3)
    assert found[-1]["kl_loss"] != pytest.approx(found[0]["kl_loss"], abs=1e-7)
    assert all(record["pretraining_loss"] > 0 for record in found)
    # The engine sampled from a truncated distribution, and the learner computed the same one.
    assert all(record["logprob_gap_max"] < 1e-3 for record in found)
    # Rank 4, float32: 2 layers with 896 inputs and outputs of the attention's layers and 1152 of the others'.
    assert {record["bytes"] for record in found} == {4 * 4 * 2 * (896 + 1152)}
    assert all(record["probe_gap"] < 1e-3 for record in found)
    summary = summary_of(grpo)
    assert "reference-0" not in summary["peak_memory_bytes"]
    assert summary["heldout_perplexity"] is None  # prompts of one's own bring no human-written texts along


def test_choosing_the_best_of_some_samples_is_a_bar_to_compare_with(grpo: Path) -> None:
    best = summary_of(grpo)["best_of_n"]
    assert best["n"] == 3
    assert best["reward"]["count"] == 20
    assert best["reward"]["mean"] > summary_of(grpo)["reward_before"]["mean"]


@pytest.fixture(scope="module")
def rollouts(grpo: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the policy of the GRPO run says now, sampled without a learner."""
    home = tmp_path_factory.mktemp("rollouts")
    process = leash(
        *("rollout", recipe, "--run", home / "run", "--steps", "2", "--policy", grpo / "model"),
        *("rollout.top_p=1.0", "rollout.workers=2", "reference.adapters_off=true"),
        log=home / "log",
    )
    ended = process.wait(DEADLINE_S)
    assert ended.code == 0, ended.output[-4000:]
    assert process.left_behind() == []
    assert "32 completions of 8 prompts" in ended.output
    return home / "run"


def test_rollouts_alone_are_of_the_saved_policy_and_scored_by_the_base(rollouts: Path) -> None:
    figures = summary_of(rollouts)["figures"]
    # Of the base itself the KL would be what rounding makes of 0; three steps have moved the policy further.
    assert figures["kl_nats"]["std"] > 1e-3
    assert 0 < figures["letter_e"]["mean"] < 1
    assert [(record["step"], record["lag"]) for record in records(rollouts)] == [(1, 0), (2, 0)]
    assert not (rollouts / "checkpoints").exists()


def test_the_account_says_that_nothing_was_learned_from_rollouts_alone(
    rollouts: Path, tmp_path: Path
) -> None:
    verified = leash("verify", rollouts, log=tmp_path / "log").wait(DEADLINE_S)
    assert verified.code == 0, verified.output
    assert "the run is over: sampled without a learner" in verified.output
    assert "discarded, sampled without a learner: 8 groups, 32 trajectories" in verified.output
    assert leash("export", rollouts, tmp_path / "x.jsonl", log=tmp_path / "log2").wait(DEADLINE_S).code == 0
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 32
    assert {(row["fate"], row["reason"], row["policy_version"]) for row in rows} == {
        ("discarded", "sampled without a learner", 0)
    }
    learned = leash("learn", rollouts, tmp_path / "again", log=tmp_path / "log3").wait(DEADLINE_S)
    assert learned.code == 2
    assert "no step of it is committed" in learned.output


def test_dpo_learns_offline_from_what_was_sampled(rollouts: Path, recipe: Path, tmp_path: Path) -> None:
    folder = finish(
        tmp_path / "dpo",
        recipe,
        'algorithm={kind = "dpo"}',
        f'datasets=[{{kind = "run", path = "{rollouts}"}}]',
        *("trainer.steps=4", "trainer.best_of=0", "trainer.evaluate_every=2"),
        *("rollout.top_p=1.0", "rollout.temperature=0"),
    )
    found = records(folder)
    assert found[0]["policy_loss"] == pytest.approx(
        math.log(2), rel=1e-3
    )  # policy and reference are still one
    assert found[-1]["pair_margin_nats"] > found[0]["pair_margin_nats"] + 0.1
    assert all(record["pair_score_gap"] > 0 for record in found)
    # Nobody samples from the new weights but for the evaluations.
    assert ["pack_s" in record for record in found] == [False, True, False, True]
    evaluations = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [evaluation["step"] for evaluation in evaluations] == [2, 4]
    best = max(evaluations, key=lambda evaluation: float(evaluation["reward_mean"]))
    assert summary_of(folder)["best_evaluation"] == best
    assert (folder / "model-best" / "model.safetensors").is_file()
    # Greedy completions are certain, so what they are from the reference is their improbability there.
    after = load_samples(folder / "heldout-after.jsonl")
    assert all(sample.kl_nats > 0 for sample in after)


def test_a_reward_model_learns_from_own_preferences_and_scores_a_run(recipe: Path, tmp_path: Path) -> None:
    """`leash reward`, then a run that finds its model in the cache and starts the value model from it."""
    rows = [
        {"prompt": f"Film {index} is", "chosen": f" {good} and bright.", "rejected": f" {good} and dull."}
        for index, good in enumerate(["good", "bad", "slow", "quick", "cold", "warm"] * 10)
    ]
    preferences = tmp_path / "preferences.jsonl"
    preferences.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    learned = recipe.with_name("learned.toml")
    learned.write_text(REWARD_MODEL.format(base=recipe.name, preferences=preferences), encoding="utf-8")
    cache = {"LEASH_CACHE": str(tmp_path / "cache")}
    process = leash("reward", learned, log=tmp_path / "reward.log", environment=cache)
    ended = process.wait(DEADLINE_S)
    assert ended.code == 0, ended.output[-4000:]
    (folder,) = (tmp_path / "cache" / "reward-models").glob("datasets-*")
    figures = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert figures["pairwise_accuracy_0"] == 1.0, figures
    trained_s = (folder / "metrics.json").stat().st_mtime
    run = finish(tmp_path / "run", learned, "trainer.steps=1", environment=cache)
    assert (folder / "metrics.json").stat().st_mtime == trained_s
    (step,) = records(run)
    assert math.isfinite(step["value_loss"])
    model, end_of_text = load_scalar_model(folder, "float32"), 2
    for row in samples_of(run, 1)[:4]:
        text = np.array([token for token in row["token_ids"] if token != end_of_text], dtype=np.int32)
        score = model.final_scores(pack_row([(text, np.arange(len(text)) > 0)]))
        assert row["score"] == pytest.approx(score.item(), abs=1e-4)
