"""Everything that a run reads from disk before its first process starts, so that bad input costs nothing."""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from actors.config import (
    DatasetConfig,
    MovieReviewDataset,
    MovieReviewPrompts,
    RewardModelReward,
    RolloutConfig,
)
from actors.dataset import check_equally_good, comparable, load_dataset, load_heldout_texts
from actors.decoding import decoding_of
from actors.prompts import load_prompts
from core.hub import ModelSource
from core.messages import DemonstrationGroup, Int32s, Prompt
from core.pretrained import check_model, load_tokenizer
from core.scored_text import special_token_ids
from learner.algorithm_config import (
    ActorCriticConfig,
    DPOConfig,
    REBELConfig,
    RPOConfig,
    SFTConfig,
    learns_from_gaps,
)
from learner.worker import PretrainingTexts
from orchestration.assets import RATINGS, asset_path, cache_folder, model_source, resolve_model
from orchestration.earlier_runs import check_decoded_alike
from orchestration.file_lock import locked
from orchestration.heldout_texts import HELDOUT_TEXTS, hold_out
from orchestration.recipe.config import PretrainingConfig, Recipe
from orchestration.reward_data import Group, Groups, digest_of, load_reward_groups

PROBE_TOKENS = 32
"""Length of the sequence on which engine and learner are compared after every push."""


class RunInputs:
    """Model, prompts and reward models of a recipe. Raises `UserError` for whatever is wrong with them."""

    def __init__(self, recipe: Recipe) -> None:
        if isinstance(recipe.algorithm, REBELConfig):
            check_decoded_alike(recipe)
        self.model_source = model_source(recipe.model.path, recipe.model.revision)
        """For processes on other nodes; `model_path` is its folder here."""
        self.model_path = resolve_model(recipe.model.path, recipe.model.revision)
        check_model(self.model_path, max_model_len=recipe.model.max_model_len)
        self.tokenizer = load_tokenizer(self.model_path)
        self.train_prompts, self.heldout_prompts = _prompts(recipe, self.tokenizer)
        self.heldout_texts = (
            load_heldout_texts(
                recipe.prompts,
                self.tokenizer,
                data_folder=asset_path(RATINGS.name),
                count=HELDOUT_TEXTS,
                max_tokens=recipe.model.max_model_len,
            )
            if isinstance(recipe.prompts, MovieReviewPrompts)
            else None
        )
        rated_for = learns_from_gaps(recipe.algorithm)
        loaded = [self._load(dataset, recipe, rated_for=rated_for) for dataset in recipe.datasets]
        pretraining = recipe.pretraining.datasets if recipe.pretraining else []
        learned, kept_back = hold_out(
            _for_method(recipe, loaded),
            recipe.datasets,
            mixed_in=[self._load(dataset, recipe) for dataset in pretraining],
        )
        self.datasets = learned.datasets
        self.heldout_texts = kept_back or self.heldout_texts
        self.pretraining = _pretraining(recipe.pretraining, learned.mixed_in)
        self.reward_sources: dict[str, ModelSource] = {}
        """Of the reward models, by the kind of worker that serves them."""
        started = time.perf_counter()
        self.reward_model_metrics: dict[str, Any] = {}
        for index, reward in enumerate(recipe.rewards):
            if isinstance(reward, RewardModelReward):
                source, path = _reward_model(recipe, reward, f"rewards.{index}")
                self.reward_sources[f"reward-{reward.name}"] = source
                if (path / "metrics.json").is_file():
                    self.reward_model_metrics = json.loads(
                        (path / "metrics.json").read_text(encoding="utf-8")
                    )

        self.seconds_for_reward_model = time.perf_counter() - started
        """Next to none if it was trained before."""

    def _load(
        self, dataset: DatasetConfig, recipe: Recipe, *, rated_for: str | None = None
    ) -> Sequence[Group]:
        return load_dataset(
            dataset,
            self.tokenizer,
            data_folder=asset_path(RATINGS.name) if isinstance(dataset, MovieReviewDataset) else None,
            max_tokens=recipe.model.max_model_len,
            rated_for=rated_for,
        )

    def steps_per_epoch(self, prompts_per_step: int) -> int | None:
        """Steps after which all prompts, or all of a dataset, have been learned from; None of several datasets,
        each of which is through at another time."""
        sizes = [len(source) for source in self.datasets] or [len(self.train_prompts)]
        return math.ceil(sizes[0] / prompts_per_step) if len(sizes) == 1 else None

    def decode(self, token_ids: list[int]) -> str:
        """Text of completion tokens, special ones left out."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

    def probe_token_ids(self, max_model_len: int) -> Int32s:
        """Held-out text, end to end: what engine and learner must score alike."""
        ids = np.concatenate([prompt.token_ids for prompt in self.heldout_prompts])
        probe: Int32s = ids[: min(PROBE_TOKENS, max_model_len - 1)]
        return probe


def value_model_source(recipe: Recipe, reward_sources: Mapping[str, ModelSource]) -> ModelSource | None:
    """The reward model with the largest weight, which the value model starts from; None if there is no value model,
    or if it starts from the policy."""
    if not isinstance(recipe.algorithm, ActorCriticConfig) or recipe.algorithm.value_init == "policy":
        return None
    models = [reward for reward in recipe.rewards if isinstance(reward, RewardModelReward)]
    return reward_sources[f"reward-{max(models, key=lambda reward: reward.weight).name}"]


def train_reward_model(recipe: Recipe) -> Path:
    """The folder of the recipe's reward model, trained if the cache does not have it. Prints its figures."""
    assert recipe.reward_model is not None
    model_path = resolve_model(recipe.model.path, recipe.model.revision)
    check_model(model_path, max_model_len=recipe.model.max_model_len)
    prompts = _normalized_on(recipe, model_path)
    groups = None
    if recipe.reward_model.datasets:
        groups = load_reward_groups(recipe, load_tokenizer(model_path), lambda: asset_path(RATINGS.name))
    of_datasets = set() if groups else {"datasets", "heldout_fraction"}
    key = json.dumps([recipe.reward_model.model_dump(exclude=of_datasets), str(model_path)], sort_keys=True)
    if prompts:
        key += json.dumps([[ids.tolist() for ids in prompts], recipe.rollout.max_new_tokens])
        key += _decoding_key(recipe.rollout)
    if groups:
        key += digest_of(groups)
    if prompts or groups:
        key += "scored without the end of text"  # those of older versions were not
    name = f"{'datasets' if groups else recipe.reward_model.data}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    folder = cache_folder() / "reward-models" / name
    if not (folder / "metrics.json").is_file():
        with locked(folder.with_name(f".{name}.lock"), _say):
            if not (folder / "metrics.json").is_file():  # or else another process has trained it meanwhile
                _train_into(folder, recipe, model_path, prompts, groups)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    measured = {margin: metrics.get(f"pairwise_accuracy_{margin}") for margin in (0, 1, 2)}
    accuracies = ", ".join(f"{share:.3f} at {m}" for m, share in measured.items() if share is not None)
    print(
        f"reward model: held-out pairwise accuracy {accuracies} or more apart in rating; "
        f"trained in {metrics['seconds']:.0f} s ({folder})",
        flush=True,
    )
    return folder


def _for_method(recipe: Recipe, datasets: Sequence[Sequence[Group]]) -> list[Sequence[Group]]:
    """What the algorithm has a use for in each dataset. Raises `UserError` where that is nothing, or harm."""
    places = [f"datasets.{place} ({dataset.kind})" for place, dataset in enumerate(recipe.datasets)]
    match recipe.algorithm:
        case DPOConfig() | RPOConfig() | REBELConfig():
            return [comparable(groups, where) for groups, where in zip(datasets, places, strict=True)]
        case SFTConfig(top_k=None):
            for groups, where in zip(datasets, places, strict=True):
                check_equally_good(groups, where)
    return list(datasets)


def _pretraining(
    config: PretrainingConfig | None, datasets: Sequence[Sequence[Group]]
) -> PretrainingTexts | None:
    """The best rated text of each group."""
    if config is None:
        return None
    return PretrainingTexts(
        datasets=[
            [
                max(group.demonstrations, key=lambda text: text.score)
                for group in groups
                if isinstance(group, DemonstrationGroup)
            ]
            for groups in datasets
        ],
        weights=[dataset.weight for dataset in config.datasets],
        coef=config.coef,
        texts_per_step=config.texts_per_step,
    )


def _reward_model(recipe: Recipe, reward: RewardModelReward, table: str) -> tuple[ModelSource, Path]:
    """For processes on other nodes, and the folder here."""
    if reward.path is None:
        folder = train_reward_model(recipe)
        return folder, folder
    source = model_source(reward.path, reward.revision, table=table)
    path = resolve_model(reward.path, reward.revision, table=table)
    check_model(path, max_model_len=recipe.model.max_model_len)
    return source, path


def _train_into(
    folder: Path, recipe: Recipe, model_path: Path, prompts: Sequence[Int32s], groups: Groups | None
) -> None:
    """Train beside the folder and rename, so that whoever finds it finds all of it. The caller holds the lock."""
    # torch's training side; a run whose reward model is cached does not need it here.
    from learner.reward_groups import RatedGroups
    from learner.reward_normalization import Sampling
    from learner.reward_stage import RatedSnippets
    from learner.reward_stage import train_reward_model as train_into

    config = recipe.reward_model
    assert config is not None
    data: RatedSnippets | RatedGroups
    if groups:
        train, heldout = groups
        special_ids = special_token_ids(model_path)
        data = RatedGroups(config, train=train, heldout=heldout, special_ids=special_ids, report=_say)
    else:
        data = RatedSnippets(config, data_folder=asset_path(RATINGS.name), report=_say)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    train_into(
        config,
        data=data,
        model_path=model_path,
        folder=unfinished,
        report=_say,
        prompts=prompts,
        sampling=Sampling(
            max_new_tokens=recipe.rollout.max_new_tokens,
            decoding=decoding_of(recipe.rollout),
            is_greedy=recipe.rollout.temperature == 0,
            stop=recipe.rollout.stop,
        ),
    )
    unfinished.rename(folder)


def _decoding_key(rollout: RolloutConfig) -> str:
    """What of it is not as in any recipe."""
    keys = ("temperature", "top_k", "top_p", "min_p", "stop")
    told, usual = (config.model_dump(include=set(keys)) for config in (rollout, RolloutConfig()))
    return "" if told == usual else json.dumps(told, sort_keys=True)


def _say(text: str) -> None:
    print(text, flush=True)


def _prompts(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Prompt], list[Prompt]]:
    """(training, held out)."""
    return load_prompts(
        recipe.prompts,
        tokenizer,
        data_folder=asset_path(RATINGS.name) if isinstance(recipe.prompts, MovieReviewPrompts) else None,
        num_heldout=recipe.trainer.heldout_prompts,
        max_prompt_tokens=recipe.model.max_model_len - recipe.rollout.max_new_tokens,
    )


def _normalized_on(recipe: Recipe, model_path: Path) -> list[Int32s]:
    assert recipe.reward_model is not None
    if recipe.reward_model.normalize_on == 0:
        return []
    training, _ = _prompts(recipe, load_tokenizer(model_path))
    return [prompt.token_ids for prompt in training[: recipe.reward_model.normalize_on]]
