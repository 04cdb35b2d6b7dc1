"""Recipes: what loads, what is said about those that do not, and that nothing is changed on the way."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from core.config import Section
from core.errors import UserError
from learner.algorithm_config import PPOConfig
from orchestration.recipe.config import Recipe
from orchestration.recipe.files import RECIPES, find_recipe
from orchestration.recipe.loading import load_recipe
from orchestration.recipe.problems import kind_of, tables_of
from orchestration.recipe.text import describe, resolved_toml, toml_value
from tests.recipes import MINIMAL

LAGGING = ["trainer.max_lag=1", "algorithm.importance_sampling=token"]
ALGORITHMS = '"rloo", "grpo", "reinforce++", "a2c", "ppo", "sft", "dpo", "rpo", "rebel"'


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(MINIMAL)
    return path


def complaints(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as raised:
        load_recipe(path, overrides)
    return str(raised.value).splitlines()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: str(path.stem))
def test_every_recipe_that_is_shipped_loads_under_its_own_name(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_overrides_are_toml_values_or_else_text(minimal: Path) -> None:
    recipe = load_recipe(
        minimal,
        [
            "learner.learning_rate=1e-3",
            "learner.gradient_checkpointing=true",
            "rewards.0.weight=0.5",
            "name=2026-01-02",
            "model.path=asset:other model",
            'algorithm={kind = "rloo", num_epochs = 2}',
            "reward_model.num_layers=3",
        ],
    )
    assert recipe.learner.learning_rate == 1e-3
    assert recipe.learner.gradient_checkpointing is True
    assert recipe.rewards[0].weight == 0.5
    assert recipe.name == "2026-01-02"
    assert recipe.model.path == "asset:other model"
    assert recipe.algorithm.num_epochs == 2
    assert recipe.reward_model is not None
    assert recipe.reward_model.num_layers == 3


def test_none_switches_an_optional_key_off(minimal: Path) -> None:
    model = 'rewards=[{kind = "model", name = "m", path = "/m"}]'
    recipe = load_recipe(
        minimal, ["metrics.port=none", model, "algorithm.kind=ppo", "algorithm.value_clip_range=none"]
    )
    assert recipe.metrics.port is None
    assert isinstance(recipe.algorithm, PPOConfig)
    assert recipe.algorithm.value_clip_range is None
    assert load_recipe(minimal, ["reward_model.l2=1.0", "reward_model=none"]).reward_model is None


def test_relative_paths_start_where_they_were_written(
    minimal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    minimal.write_text(MINIMAL.replace("asset:tiny", "models/tiny"))
    assert load_recipe(minimal).model.path == str(tmp_path / "models" / "tiny")
    assert load_recipe(minimal, ["model.path=mine"]).model.path == str(tmp_path / "elsewhere" / "mine")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        (
            "learner.learning_rat=1",
            "learner.learning_rat = 1: unknown key; did you mean learner.learning_rate?",
        ),
        (
            "learning_rate=1",
            "unknown key; did you mean reward_model.tuning.learning_rate or learner.learning_rate?",
        ),
        ("rollout.stop=abc", 'rollout.stop = "abc": must be an array of texts; write it as ["abc"]'),
        ("rollout.stop=3", "rollout.stop = 3: must be an array of texts; set [], the default"),
        ("lerner.world_size=2", "lerner = {world_size = 2}: unknown key; did you mean learner?"),
        ("kl.qqq=1", "kl.qqq = 1: unknown key; the keys of [kl] are kl_coef, placement, estimator,"),
        ("rewards.0.wieght=1", "rewards.0.wieght = 1: unknown key; did you mean rewards.0.weight?"),
        ("algorithm.gamma=1", 'algorithm.gamma = 1: unknown key; set algorithm.kind = "ppo", which knows it'),
        (
            "algorithm.kind=rlo",
            f'algorithm.kind = "rlo": must be one of {ALGORITHMS}; did you mean "rloo"?',
        ),
        (
            "algorithm={}",
            f'algorithm.kind is missing: must be one of {ALGORITHMS}; set "rloo", say',
        ),
        (
            "trainer={steps = 1}",
            "trainer.prompts_per_step is missing: must be a whole number, at least 1; add it",
        ),
        ("trainer.steps=0", "trainer.steps = 0: must be a whole number, at least 1; set 1 or more"),
        ("trainer.steps=2.0", "trainer.steps = 2.0: must be a whole number, at least 1; set 1 or more"),
        ("trainer.steps=true", "trainer.steps = true: must be a whole number, at least 1; set 1 or more"),
        (
            'seed="5"',
            'seed = "5": must be a whole number, at least 0 and at most 1000000000; write 5 without quotes',
        ),
        (
            "seed=9223372036854775807",
            "seed = 9223372036854775807: must be a whole number, at least 0 and at most",
        ),
        (
            "prompts.split_seed=1000000001",
            "prompts.split_seed = 1000000001: must be a whole number, at least 0",
        ),
        (
            "learner.adam_beta1=1",
            "learner.adam_beta1 = 1: must be a number, at least 0 and below 1; set 0.9",
        ),
        ("learner.zero_stage=4", "learner.zero_stage = 4: must be one of 0, 1, 2, 3; set 0, the default"),
        ("kl.estimator=K3", 'kl.estimator = "K3": must be one of "k1", "k2", "k3", "abs", "exact"; set "k1"'),
        (
            "kl.kl_target=low",
            'kl.kl_target = "low": must be a number, above 0, or "none"; correct it, or leave',
        ),
        ("kl.kl_coef=nan", "kl.kl_coef = nan: must be a finite number; set one"),
        (
            "model.dtype=bfloat",
            'model.dtype = "bfloat": must be one of "float32", "bfloat16"; did you mean "bfl',
        ),
        ("model.path=5", 'model.path = 5: must be text; write it in quotes: "5"'),
        ("name=My Run", 'name = "My Run": must be text that matches ^[a-z0-9][a-z0-9-]*$; set "my-run", say'),
        (
            "rewards.0.function=a.b",
            r'.function = "a.b": must be text that matches ^[\w.]+:\w+$; set "a:b", say',
        ),
        (
            "rewards=[]",
            "rewards = []: must be an array of tables with at least one entry; write it as [[rewards]]",
        ),
        ("rewards=[3]", "rewards.0 = 3: must be a table; write it as [[rewards]]"),
        ("learner=3", "learner = 3: must be a table; write it as [learner]"),
        ("rewards.1.weight=1", "rewards has 1 entries; give a position from 0 to 0"),
        ("name.x=1", "name is a value, not a table; set name itself"),
        ("learner.world_size", "an override is KEY=VALUE; write it as in learner.learning_rate=1e-5"),
        ("learner..x=1", "an override is KEY=VALUE"),
    ],
)
def test_an_error_names_key_value_rule_and_remedy(minimal: Path, override: str, complaint: str) -> None:
    lines = complaints(minimal, override)
    assert len(lines) == 1
    assert lines[0].startswith("command line: ")
    assert complaint in lines[0]


def test_an_error_in_the_file_names_the_file(minimal: Path) -> None:
    minimal.write_text(MINIMAL.replace("steps = 2", "steps = 2024-05-06").replace("[prompts]", "[promts]"))
    date, missing, unknown = complaints(minimal)
    assert date.startswith(f"{minimal}: trainer.steps = 2024-05-06: no key takes a date")
    assert missing == f"{minimal}: prompts is missing: must be a table; add [prompts]"
    assert unknown.startswith(f"{minimal}: promts = {{kind = ")
    assert unknown.endswith("unknown key; did you mean prompts?")


def test_all_problems_come_at_once_also_those_between_sections(minimal: Path) -> None:
    lines = complaints(
        minimal, "learner.world_size=x", "seed", "rollout.group_size=1", "kl.controller=adaptive"
    )
    assert [line.split(": ")[1].split(" ")[0] for line in lines] == [
        "seed",
        "learner.world_size",
        "rollout.group_size",
        "kl.kl_target",
    ]
    assert lines[2].startswith(f"command line and {minimal}: rollout.group_size = 1: rloo compares")
    assert lines[3].startswith(f"{minimal} and command line: kl.kl_target is not set: the adaptive")


OWN_TEXTS = 'datasets=[{kind = "jsonl", path = "/texts.jsonl"}]'
DEMONSTRATIONS = 'datasets=[{kind = "movie-reviews", content = "demonstrations"}]'
COMPARISONS = 'datasets=[{kind = "movie-reviews", content = "comparisons"}]'
PRETRAINING = 'pretraining={coef = 1.0, datasets = [{kind = "jsonl", path = "/texts.jsonl"}]}'
MODEL_REWARD = 'rewards=[{kind = "model", name = "m", path = "/m", token_budget = 512}]'


@pytest.mark.parametrize(
    ("overrides", "gap"),
    [([], 3e-4), (["model.dtype=bfloat16"], 0.3), (["weight_push.max_probe_gap=0.2"], 0.2)],
)
def test_how_far_engine_and_learner_may_differ_goes_by_the_dtype(
    minimal: Path, overrides: list[str], gap: float
) -> None:
    assert load_recipe(minimal, overrides).max_probe_gap == gap


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["rollout.group_size=1"], "rollout.group_size = 1: rloo compares"),
        *(
            (
                [f"algorithm.kind={kind}", "rollout.group_size=1"],
                f"rollout.group_size = 1: {kind} compares the completions of a prompt with each other",
            )
            for kind in ("grpo", "dpo", "rpo", "rebel")
        ),
        *(
            ([f"algorithm.kind={kind}", OWN_TEXTS], f"{kind} learns from what the present policy samples")
            for kind in ("rloo", "grpo", "reinforce++")
        ),
        (
            ["algorithm.kind=sft"],
            "algorithm.top_k is not set: sft on all of the policy's own samples teaches nothing",
        ),
        *(
            (
                [f"algorithm.kind={kind}", DEMONSTRATIONS],
                f'datasets.0.content = "demonstrations": {kind} compares completions',
            )
            for kind in ("dpo", "rpo", "rebel")
        ),
        (
            ["algorithm.kind=dpo", "algorithm.variant=conservative"],
            "algorithm.label_smoothing = 0.0 (the default): labels that may be wrong",
        ),
        (
            ["algorithm.kind=dpo", "algorithm.label_smoothing=0.1"],
            "algorithm.label_smoothing = 0.1: labels that may be wrong",
        ),
        (
            ["algorithm.kind=grpo", "algorithm.overlong_buffer_tokens=9", "rollout.max_new_tokens=8"],
            "algorithm.overlong_buffer_tokens = 9: the buffer lies before the limit, rollout.max_new_tokens = 8",
        ),
        (
            [PRETRAINING, "pretraining.datasets.0.kind=run"],
            'pretraining.datasets.0.kind = "run": what a policy has sampled does not hold it near human text',
        ),
        (
            [MODEL_REWARD, PRETRAINING, "algorithm.kind=ppo", "algorithm.value_warmup_steps=1"],
            "algorithm.value_warmup_steps = 1: in the warm-up the policy makes no step",
        ),
        (
            ['rewards=[{kind="http", name="m", url="http://h", token_env="T", token_file="/t"}]'],
            'rewards.0.token_file = "/t": a reward server has one token',
        ),
        (
            ["trackers.mlflow.tracking_uri=https://me:word@mlflow.example"],
            'trackers.mlflow.tracking_uri = "https://me:word@mlflow.example": the run folder keeps a copy',
        ),
        (["reference.adapters_off=true"], "reference.adapters_off = true: a learner without adapters"),
        (
            ["reward_model.tuning.rankings_per_step=4", "reward_model.tuning.world_size=5"],
            "reward_model.tuning.world_size = 5: the 4 rankings of a step cannot be shared by more ranks",
        ),
        (["weight_push.form=adapters"], 'weight_push.form = "adapters": a learner without adapters has only'),
        (
            ["weight_push.form=adapters", "learner.lora.rank=513"],
            "learner.lora.rank = 513: the engines take adapters of rank 512 at most",
        ),
        (
            [MODEL_REWARD, "algorithm.kind=a2c", "trainer.max_lag=1"],
            "trainer.max_lag = 1: a2c takes no ratio",
        ),
        (["rollout.temperature=0.005"], "rollout.temperature = 0.005: the engine samples at 0.01 at least"),
        (
            ["rollout.temperature=0"],
            "rollout.temperature = 0.0: greedy completions are certain and all the same",
        ),
        (
            ["algorithm.kind=sft", OWN_TEXTS, "rollout.temperature=0", "trainer.best_of=4"],
            "trainer.best_of = 4: greedy completions of a prompt are all the same",
        ),
        *(
            (
                ["learner.dropout=0.1", *algorithm],
                "learner.dropout = 0.1: the policy that learns from its own samples must be the one that sampled",
            )
            for algorithm in ([], ["algorithm.kind=dpo"])
        ),
        (["kl.controller=adaptive"], "kl.kl_target is not set: the adaptive controller"),
        (
            ["kl.controller=adaptive", "kl.kl_target=6.0", "kl.horizon=20", "rollout.group_size=34"],
            "kl.horizon = 20: with 102 completions a step one step could bring kl_coef to 0; set 1020, say",
        ),
        (["kl.controller=budget"], "kl.kl_target is not set: the budget controller"),
        (
            ["kl.controller=budget", "kl.kl_target=7", "kl.kl_coef=0"],
            "kl.kl_coef = 0.0: the budget controller multiplies the coefficient",
        ),
        (
            ["algorithm.kind=dpo", "kl.controller=adaptive", "kl.kl_target=6.0"],
            'kl.controller = "adaptive": dpo has no KL penalty',
        ),
        (
            ["algorithm.kind=dpo", "alarm.action=raise_kl"],
            'alarm.action = "raise_kl": dpo has no KL penalty that could be raised',
        ),
        (
            ['algorithm={kind = "sft", top_k = 12, top_k_of = "step"}'],
            "algorithm.top_k = 12: the best 12 of the 12 samples of a step are all of them",
        ),
        (["alarm.action=raise_kl", "kl.kl_coef=0.0"], 'alarm.action = "raise_kl": a kl_coef of 0 stays 0'),
        (
            ["kl.placement=loss"],
            'kl.estimator = "k1" (the default): in the loss the mean gradient of k1 is 0',
        ),
        (["kl.estimator=exact"], 'kl.estimator = "exact": the exact KL is taken to the base under the adap'),
        *(
            (
                ["kl.direction=forward", f"kl.estimator={estimator}"],
                'kl.direction = "forward": estimators from sampled tokens are of the reverse KL',
            )
            for estimator in ("k1", "k2", "k3", "abs")
        ),
        (
            ["learner.lora.rank=4", "algorithm.kind=grpo", "kl.estimator=exact"],
            'kl.placement = "reward" (the default): part of the exact KL\'s gradient is in the loss',
        ),
        *(
            (
                [
                    "learner.lora.rank=4",
                    "kl.estimator=exact",
                    "kl.direction=forward",
                    f"rollout.{truncation}",
                ],
                'kl.direction = "forward": the reference keeps tokens that the truncated policy cannot sample',
            )
            for truncation in ("top_p=0.9", "top_k=20", "min_p=0.1")
        ),
        (
            ["algorithm.kind=rebel", COMPARISONS, "rollout.top_p=0.9"],
            'algorithm.kind = "rebel": texts of a dataset count as samples over the whole vocabulary',
        ),
        (
            ["rollout.workers=5", "rollout.autoscale.max_workers=4"],
            "rollout.workers = 5: the run would start outside of 1 to 4 workers",
        ),
        (
            ["rollout.autoscale.max_workers=1", "rollout.autoscale.min_workers=2"],
            "rollout.autoscale.min_workers = 2: no number of workers is within, rollout.autoscale.max_workers = 1",
        ),
        (
            ["rollout.autoscale.max_workers=4", "rollout.autoscale.shrink_below=0.5"],
            "rollout.autoscale.shrink_below = 0.5: the number of workers would go up and down for ever",
        ),
        (["algorithm.num_minibatches=4"], "algorithm.num_minibatches = 4: a mini-batch"),
        (
            ["trainer.order=window"],
            'trainer.order_window = 0 (the default): with trainer.order = "window" so many groups may be overtaken',
        ),
        (
            ["trainer.order=completion", "trainer.order_window=2"],
            'trainer.order_window = 2: with trainer.order = "window" so many groups may be overtaken',
        ),
        (
            ["trainer.order=completion", "trainer.max_lag=1"],
            'trainer.order = "completion": who is slow lags more, so the lag goes with the length',
        ),
        (
            [
                'algorithm={kind = "dpo"}',
                'datasets=[{kind = "movie-reviews", content = "comparisons"}]',
                "trainer.order=completion",
            ],
            'trainer.order = "completion": texts of a dataset are not waited for',
        ),
        (
            ["weight_push.running=finish", "weight_push.finish_s=120"],
            "weight_push.finish_s = 120.0: a worker would be given up while it finishes: a push may take 120 s",
        ),
        (
            ["faults.silence_s=72.6"],
            "faults.silence_s = 72.6: who is silent is replaced after twice as long, and what it had to do must be "
            "done by others within deadlines.rollout_s = 300; set 72.5, or a larger deadlines.rollout_s",
        ),
        (
            ["deadlines.rollout_s=9"],
            "who is silent is replaced after twice as long, and what it had to do must be done by others within "
            "deadlines.rollout_s = 9; set a larger deadlines.rollout_s",
        ),
        (
            ["learner.world_size=4"],
            "learner.world_size = 4: a rank learns from whole prompts, and trainer.prompts_per_step is 3",
        ),
        (
            ["learner.offload=optimizer"],
            'learner.offload = "optimizer": what is offloaded is what ZeRO shards, and learner.zero_stage is 0; '
            'set learner.zero_stage = 1, or offload = "none"',
        ),
        (
            ["learner.offload=parameters", "learner.zero_stage=2"],
            'learner.offload = "parameters": what is offloaded is what ZeRO shards, and learner.zero_stage is 2; '
            'set learner.zero_stage = 3, or offload = "none"',
        ),
        (["rollout.max_new_tokens=256"], "rollout.max_new_tokens = 256: prompt and completion"),
        (["learner.token_budget=255"], "learner.token_budget = 255: a forward pass must hold"),
        (["reference.token_budget=255"], "reference.token_budget = 255: a forward pass must hold"),
        (
            [MODEL_REWARD, "rewards.0.token_budget=255"],
            "rewards.0.token_budget = 255: a forward pass must hold",
        ),
        (
            ["rollout.resources.num_gpus=1", "rollout.tensor_parallel=2"],
            "rollout.tensor_parallel = 2: an engine cannot be spread over more GPUs than its worker has, 1",
        ),
        (
            ["rollout.resources.num_gpus=2.5"],
            "rollout.resources.num_gpus = 2.5: Ray shares out one GPU, or gives whole ones; set 2 or 3",
        ),
        *(
            (
                [f"{table}.resources.num_gpus=2"],
                f"{table}.resources.num_gpus = 2.0: a process of these computes on one GPU; set 1",
            )
            for table in ("learner", "reference", "rewards.0")
        ),
        (
            ["learner.resources.num_gpus=0.5", "learner.world_size=2"],
            "learner.resources.num_gpus = 0.5: NCCL takes no two ranks on one GPU; set 1",
        ),
        (["rewards.0.weight=0"], "rewards.0.weight = 0.0: the score is the weighted sum"),
        (
            ['rewards=[{kind="model", name="m", path="/m"}, {kind="model", name="m", path="/n"}]'],
            'rewards.1.name = "m": metrics and samples tell rewards apart by name',
        ),
        ([MODEL_REWARD, "rewards.0.path=none"], "rewards.0.path is not set: a reward model is either given"),
        (["reward_model.split_seed=1"], "reward_model.split_seed = 1: with another seed than the prompts'"),
        (
            [
                'algorithm={kind = "dpo"}',
                'datasets=[{kind = "movie-reviews", content = "comparisons", split_seed = 1}]',
            ],
            "datasets.0.split_seed = 1: with another seed than the prompts', held-out snippets would be learned",
        ),
        (
            [
                'algorithm={kind = "dpo"}',
                'datasets=[{kind = "jsonl", path = "x", completion_only_loss = false}]',
            ],
            "datasets.0.completion_only_loss = false: dpo compares the completions of a prompt",
        ),
        (
            ["algorithm.kind=ppo"],
            'algorithm.value_init = "reward-model" (the default): the value model of ppo starts from a reward',
        ),
        (
            ["algorithm.kind=a2c", "algorithm.value_init=reward-model"],
            'algorithm.value_init = "reward-model": the value model of a2c starts from a reward model',
        ),
        (
            [MODEL_REWARD, "algorithm.kind=a2c", "algorithm.num_epochs=2"],
            "algorithm.num_epochs = 2: must be one of 1; set 1, the default",
        ),
        (
            [MODEL_REWARD, "algorithm.kind=a2c", "algorithm.clip_range_low=0.1"],
            'algorithm.clip_range_low = 0.1: unknown key; set algorithm.kind = "ppo", which knows it',
        ),
    ],
)
def test_contradictory_sections_are_refused(minimal: Path, overrides: list[str], complaint: str) -> None:
    lines = complaints(minimal, *overrides)
    assert len(lines) == 1
    assert complaint in lines[0]


@pytest.mark.parametrize(
    "overrides",
    [
        ["rollout.group_size=2", "learner.world_size=3"],
        *(
            [f"algorithm.kind={kind}", "rollout.group_size=1", dataset]
            for kind in ("dpo", "rpo", "rebel")
            for dataset in (OWN_TEXTS, COMPARISONS)
        ),
        *([f"algorithm.kind={kind}", "rollout.group_size=2"] for kind in ("grpo", "dpo", "rpo", "rebel")),
        ["algorithm.kind=reinforce++", "rollout.group_size=1"],
        ["algorithm.kind=sft", OWN_TEXTS, "rollout.temperature=0", "learner.dropout=0.1"],
        *(["algorithm.kind=sft", dataset] for dataset in (OWN_TEXTS, DEMONSTRATIONS, COMPARISONS)),
        ["algorithm.kind=sft", "algorithm.top_k=1"],
        ["algorithm.kind=dpo", "algorithm.variant=conservative", "algorithm.label_smoothing=0.1"],
        ["algorithm.kind=grpo", "algorithm.overlong_buffer_tokens=8", "rollout.max_new_tokens=8"],
        *(["kl.placement=loss", f"kl.estimator={estimator}"] for estimator in ("k2", "k3", "abs")),
        *(
            [
                "learner.lora.rank=4",
                "kl.estimator=exact",
                f"kl.placement={place}",
                f"kl.direction={direction}",
            ]
            for place in ("reward", "loss")
            for direction in ("reverse", "forward")
        ),
        ["learner.lora.rank=4", "kl.estimator=exact", "rollout.top_p=0.9"],
        ["algorithm.kind=rebel", "rollout.top_p=0.9"],
        ["algorithm.kind=rebel", 'datasets=[{kind = "run", path = "/run"}]', "rollout.top_p=0.9"],
        ["algorithm.kind=dpo", COMPARISONS, "rollout.top_p=0.9"],
        ["learner.lora.rank=4", "kl.estimator=exact", "kl.placement=loss", "algorithm.kind=grpo"],
        [MODEL_REWARD, "algorithm.kind=ppo", "algorithm.value_warmup_steps=1"],
        [MODEL_REWARD, "algorithm.kind=ppo", PRETRAINING],
        ['datasets=[{kind = "run", path = "/run"}]', "algorithm.kind=dpo"],
        ["reference.adapters_off=true", "learner.lora.rank=4"],
        ["weight_push.form=adapters", "learner.lora.rank=512"],
        ["learner.lora.rank=513"],
        [MODEL_REWARD, "algorithm.kind=a2c", "rollout.group_size=1"],
        ["kl.kl_target=6.0"],
        ["kl.controller=adaptive", "kl.kl_target=6.0"],
        ["kl.controller=adaptive", "kl.kl_target=6.0", "kl.horizon=21", "rollout.group_size=34"],
        ["kl.controller=budget", "kl.kl_target=6.0"],
        ["algorithm.num_minibatches=3"],
        ["trainer.order=completion"],  # without lag it is the order of the start
        ["trainer.order=window", "trainer.order_window=1", *LAGGING],
        ["weight_push.running=finish"],
        ["weight_push.finish_s=120"],
        ["faults.silence_s=72.5"],
        ["rollout.max_new_tokens=255", "learner.token_budget=256", "reference.token_budget=256"],
        ["rollout.resources.num_gpus=2", "rollout.tensor_parallel=2"],
        ["rollout.resources.num_gpus=0.5"],
        ["learner.resources.num_gpus=0.5"],
        ["learner.resources.num_gpus=1", "learner.world_size=2", "rewards.0.resources.num_gpus=1"],
        [MODEL_REWARD, "algorithm.kind=ppo", "rollout.group_size=1"],
        ["reward_model.split_seed=1", "prompts.split_seed=1"],
        ["model.dtype=bfloat16"],
    ],
)
def test_what_is_just_within_the_rules_loads(minimal: Path, overrides: list[str]) -> None:
    load_recipe(minimal, overrides)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"name = 'a'\nsteps = = 3\n", "not valid TOML: Invalid value (at line 2, column 9)"),
        (b"name = 'a'\n# caf\xe9\n", "line 2 is not UTF-8 text"),
        (b"a = 1\na = 2\n", "not valid TOML: Cannot overwrite a value"),
    ],
)
def test_an_unreadable_file_is_one_clear_sentence(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    (line,) = complaints(path)
    assert line.startswith(f"{path}: {complaint}")


def test_a_missing_file_and_a_folder_are_said_to_be_so(tmp_path: Path) -> None:
    assert complaints(tmp_path / "no.toml")[0].startswith(f"{tmp_path / 'no.toml'}: no such file; give")
    assert complaints(tmp_path)[0].startswith(f"{tmp_path}: cannot be read (Is a directory)")


def test_a_recipe_is_found_by_path_and_by_bare_name(minimal: Path) -> None:
    assert find_recipe(str(minimal)) == minimal
    assert find_recipe("movie-reviews").resolve() == (RECIPES / "movie-reviews.toml").resolve()
    with pytest.raises(UserError, match="movie-review: no recipe has this name; did you mean movie-reviews"):
        find_recipe("movie-review")


def test_every_key_has_a_help_text() -> None:
    def undocumented(table: type[Section], path: str) -> list[str]:
        found = []
        for name, field in table.model_fields.items():
            below = tables_of(field.annotation)
            found += [key for inner in below for key in undocumented(inner, f"{path}{name}.")]
            if not below and not field.description and name != "kind":
                found.append(path + name)
        return found

    assert undocumented(Recipe, "") == []


# Any recipe whatever, drawn from the schema, whether or not its sections contradict each other.


def recipes() -> st.SearchStrategy[Recipe]:
    return tables(Recipe).map(lambda data: Recipe.model_validate_json(json.dumps(data)))


def tables(table: type[Section]) -> st.SearchStrategy[dict[str, Any]]:
    required = {
        name: values(name, field) for name, field in table.model_fields.items() if field.is_required()
    }
    optional = {
        name: values(name, field) for name, field in table.model_fields.items() if name not in required
    }
    return st.fixed_dictionaries(required, optional=optional)


def values(name: str, field: FieldInfo) -> st.SearchStrategy[Any]:
    below = [tables(table) for table in tables_of(field.annotation)]
    bounds = {key: getattr(item, key) for item in field.metadata for key in vars_of(item)}
    kinds = [kind for kind in (get_args(field.annotation) or (field.annotation,)) if kind is not type(None)]
    if get_origin(field.annotation) is list:
        drawn: st.SearchStrategy[Any] = st.lists(st.one_of(below), min_size=1, max_size=3)
    elif below:
        drawn = st.one_of(below)
    elif get_origin(field.annotation) is Literal:
        drawn = st.sampled_from(get_args(field.annotation))
    elif kinds == [bool]:
        drawn = st.booleans()
    elif kinds == [int]:
        drawn = st.integers(bounds.get("ge", 0), bounds.get("le", 2**40))
    elif kinds == [float]:
        low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
        floats = st.floats(low, high, exclude_min="gt" in bounds, exclude_max="lt" in bounds)
        drawn = floats.filter(math.isfinite)
    elif name in ("path", "discovery_folder", "token_file"):
        texts = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
        drawn = texts.filter(lambda text: text not in (".", "..")).map("/".__add__)
    elif "pattern" in bounds:
        # Python's `$` also matches before a last newline, and its \\w knows other letters than pydantic's.
        ascii_alone = st.characters(codec="ascii")
        matching = st.from_regex(bounds["pattern"], fullmatch=True, alphabet=ascii_alone)
        drawn = matching.filter(lambda text: not text.endswith("\n"))
    else:
        drawn = st.text(st.characters(exclude_categories=["Cs"]), min_size=bounds.get("min_length", 0))
    return st.none() | drawn if type(None) in get_args(field.annotation) else drawn


def vars_of(constraint: object) -> list[str]:
    names = ("ge", "gt", "le", "lt", "pattern", "min_length")
    return [name for name in names if getattr(constraint, name, None) is not None]


@given(recipe=recipes())
@settings(max_examples=25, deadline=None)
def test_any_recipe_round_trips_through_its_text(
    recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("round-trip") / "recipe.toml"
    with patch("orchestration.recipe.loading.contradictions", return_value=[]):
        for text in (resolved_toml(recipe), describe(recipe)):
            path.write_text(text, encoding="utf-8")
            assert load_recipe(path) == recipe


@given(recipe=recipes())
@settings(max_examples=25, deadline=None)
def test_every_override_lands(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every key of a recipe, set one by one from the command line over a file with nothing but arrays."""
    path = tmp_path_factory.mktemp("overrides") / "recipe.toml"
    arrays: dict[str, Sequence[Section]] = {"rewards": recipe.rewards, "datasets": recipe.datasets}
    if recipe.pretraining:
        arrays["pretraining.datasets"] = recipe.pretraining.datasets
    if recipe.reward_model:
        arrays["reward_model.datasets"] = recipe.reward_model.datasets
    for name, entries in arrays.items():
        kinds = ", ".join(f'{{kind = "{kind_of(type(entry))}"}}' for entry in entries)
        path.open("a").write(f"{name} = [{kinds}]\n")
    overrides = [f"{key}={toml_value(value)}" for key, value in leaves(recipe, "") if value is not None]
    overrides += [f"{key}=none" for key, value in leaves(recipe, "") if value is None]
    with patch("orchestration.recipe.loading.contradictions", return_value=[]):
        assert load_recipe(path, overrides) == recipe


def leaves(value: object, key: str) -> list[tuple[str, object]]:
    if isinstance(value, Section):
        return [leaf for name, inner in value for leaf in leaves(inner, f"{key}.{name}".strip("."))]
    if isinstance(value, list):
        return [leaf for index, inner in enumerate(value) for leaf in leaves(inner, f"{key}.{index}")]
    return [(key, value)]
