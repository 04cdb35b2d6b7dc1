"""Rules about reward models: what they learn from, and what starts from them."""

from collections.abc import Callable, Iterator

from actors.config import (
    LearnedTexts,
    MovieReviewDataset,
    MovieReviewPrompts,
    PromptsConfig,
    RewardConfig,
    RewardModelReward,
)
from learner.algorithm_config import ActorCriticConfig, AlgorithmConfig
from orchestration.recipe.config import RewardStageConfig
from orchestration.recipe.contradiction import Contradiction


def _check_reward_model(
    prompts: PromptsConfig, rewards: list[RewardConfig], reward_model: RewardStageConfig | None
) -> Iterator[Contradiction]:
    for index, reward in enumerate(rewards):
        if isinstance(reward, RewardModelReward) and reward.path is None and reward_model is None:
            yield Contradiction(
                (f"rewards.{index}.path", "reward_model"),
                "a reward model is either given or trained by this recipe",
                "set the folder of a reward model, or add a [reward_model] table",
            )
    if (
        reward_model
        and not reward_model.datasets
        and isinstance(prompts, MovieReviewPrompts)
        and reward_model.split_seed != prompts.split_seed
    ):
        yield Contradiction(
            ("reward_model.split_seed", "prompts.split_seed"),
            "with another seed than the prompts', the reward model would learn from the prompts' snippets",
            f"set {prompts.split_seed}",
        )


def _check_reward_datasets(reward_model: RewardStageConfig | None) -> Iterator[Contradiction]:
    if reward_model is None or not reward_model.datasets:
        return
    if reward_model.cut_copies:
        yield Contradiction(
            ("reward_model.cut_copies", "reward_model.datasets"),
            "only the demo's snippets are cut; the completions of datasets are learned from as they are",
            "set 0",
        )
    for place, dataset in enumerate(reward_model.datasets):
        if isinstance(dataset, MovieReviewDataset) and dataset.content == "demonstrations":
            yield Contradiction(
                (f"reward_model.datasets.{place}.content",),
                "a reward model learns from comparisons, and a demonstration stands alone",
                'set "comparisons"',
            )
        if isinstance(dataset, LearnedTexts) and not dataset.completion_only_loss:
            yield Contradiction(
                (f"reward_model.datasets.{place}.completion_only_loss",),
                "a reward model learns which completion is better, and all of a group have the prompt in common",
                "leave it out",
            )
        if isinstance(dataset, LearnedTexts) and dataset.heldout_fraction:
            yield Contradiction(
                (f"reward_model.datasets.{place}.heldout_fraction",),
                "what a reward model is measured on is taken from all of its datasets",
                f"set reward_model.heldout_fraction = {dataset.heldout_fraction:g} instead",
            )
        if dataset.weight != 1:
            yield Contradiction(
                (f"reward_model.datasets.{place}.weight",),
                "a reward model learns from all groups of its datasets, so there is no mixture to weigh",
                "leave it out",
            )


def _check_reward_ranks(reward_model: RewardStageConfig | None) -> Iterator[Contradiction]:
    tuning = reward_model.tuning if reward_model else None
    if tuning and tuning.world_size > tuning.rankings_per_step:
        yield Contradiction(
            ("reward_model.tuning.world_size", "reward_model.tuning.rankings_per_step"),
            f"the {tuning.rankings_per_step} rankings of a step cannot be shared by more ranks",
            f"set {tuning.rankings_per_step} or less",
        )


def _check_value_model(algorithm: AlgorithmConfig, rewards: list[RewardConfig]) -> Iterator[Contradiction]:
    if not isinstance(algorithm, ActorCriticConfig) or algorithm.value_init == "policy":
        return
    if not any(isinstance(reward, RewardModelReward) for reward in rewards):
        yield Contradiction(
            ("algorithm.value_init", "rewards"),
            f"the value model of {algorithm.kind} starts from a reward model, and no reward is one",
            'set "policy", or add a reward with kind = "model"',
        )


REWARD_RULES: tuple[Callable[..., Iterator[Contradiction]], ...] = (
    _check_reward_model,
    _check_reward_datasets,
    _check_reward_ranks,
    _check_value_model,
)
