"""Rules of what comes from the Hugging Face Hub: a run uses one commit of it, whoever starts it, whenever.

A branch or a tag is refused, because it may point elsewhere tomorrow, or on the next node. Planning needs no
revision yet, so one that is missing is refused where a model or dataset is fetched: `orchestration/assets.py`,
`actors/rows.py`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from actors.config import (
    DatasetConfig,
    HuggingFace,
    PromptsConfig,
    RewardConfig,
    RewardModelReward,
)
from core.config import ModelConfig
from core.hub import is_commit, is_hub_name
from orchestration.recipe.config import PretrainingConfig, Recipe, RewardStageConfig
from orchestration.recipe.contradiction import Contradiction


def unpinned(recipe: Recipe) -> Iterator[str]:
    """What is on the Hub and has no revision yet, as `key = name`. Asks no network."""
    for table, model in _models(recipe.model, recipe.rewards).items():
        if model.path is not None and is_hub_name(model.path) and model.revision is None:
            yield f"{table}.path = {model.path}"
    for table, rows in _datasets(
        recipe.prompts, recipe.datasets, recipe.pretraining, recipe.reward_model
    ).items():
        if rows.revision is None and not Path(rows.name).exists():
            yield f"{table}.name = {rows.name}"


def _check_models(model: ModelConfig, rewards: list[RewardConfig]) -> Iterator[Contradiction]:
    for table, config in _models(model, rewards).items():
        if config.revision is None:
            continue
        if config.path is None or not is_hub_name(config.path):
            yield Contradiction(
                (f"{table}.revision", f"{table}.path"),
                f"is for models on the Hub, and {table}.path is {config.path or 'not set'}",
                'set "none", or a name such as Qwen/Qwen2.5-0.5B-Instruct as path',
            )
        elif not is_commit(config.revision):
            yield _no_commit(table, f"hf models info {config.path}")


def _check_datasets(
    prompts: PromptsConfig,
    datasets: list[DatasetConfig],
    pretraining: PretrainingConfig | None,
    reward_model: RewardStageConfig | None,
) -> Iterator[Contradiction]:
    for table, rows in _datasets(prompts, datasets, pretraining, reward_model).items():
        if rows.revision is not None and not is_commit(rows.revision):
            yield _no_commit(table, f"hf datasets info {rows.name}")


def _no_commit(table: str, command: str) -> Contradiction:
    return Contradiction(
        (f"{table}.revision",),
        "must be the hash of a commit, all 40 hex digits, since a branch or a tag may point elsewhere tomorrow",
        f"set the one that `{command}` shows as sha",
    )


def _models(model: ModelConfig, rewards: list[RewardConfig]) -> dict[str, ModelConfig | RewardModelReward]:
    served = {
        f"rewards.{index}": reward
        for index, reward in enumerate(rewards)
        if isinstance(reward, RewardModelReward)
    }
    return {"model": model, **served}


def _datasets(
    prompts: PromptsConfig,
    datasets: list[DatasetConfig],
    pretraining: PretrainingConfig | None,
    reward_model: RewardStageConfig | None,
) -> dict[str, HuggingFace]:
    """Those of the `datasets` library, by the table that names them."""
    mixed = {
        "datasets": datasets,
        "pretraining.datasets": pretraining.datasets if pretraining else [],
        "reward_model.datasets": reward_model.datasets if reward_model else [],
    }
    tables: dict[str, object] = {"prompts": prompts}
    tables |= {f"{table}.{index}": each for table, all_ in mixed.items() for index, each in enumerate(all_)}
    return {table: each for table, each in tables.items() if isinstance(each, HuggingFace)}


REVISION_RULES: tuple[Callable[..., Iterator[Contradiction]], ...] = (_check_models, _check_datasets)
