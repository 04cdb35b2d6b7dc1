"""What is wrong only between the sections of a recipe: each is valid, together they are not.

A rule is a function whose parameters are named after the sections that it reads, so that it still runs when
another section is invalid and all that is wrong with a recipe is reported at once.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from actors.config import (
    DatasetConfig,
    MovieReviewDataset,
    MovieReviewPrompts,
    PromptsConfig,
    ReferenceConfig,
    RewardConfig,
    RewardModelReward,
    RolloutConfig,
)
from core.config import ModelConfig
from learner.algorithm_config import (
    AlgorithmConfig,
    DPOConfig,
    GRPOConfig,
    PolicyGradientConfig,
    PPOConfig,
    REBELConfig,
    RLOOConfig,
    RPOConfig,
    SFTConfig,
)
from learner.config import KLConfig, LearnerConfig, RewardModelConfig
from orchestration.config import TrainerConfig


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two sections that do not go together."""

    keys: tuple[str, ...]
    """Dotted keys that have a part in it; the first is the one that is reported."""
    rule: str
    """What must hold."""
    instead: str
    """What to set."""


def contradictions(sections: Mapping[str, object]) -> list[Contradiction]:
    """Every broken rule among these valid sections, by name. Rules about other sections are skipped."""
    found: list[Contradiction] = []
    for check in _CHECKS:
        names = inspect.signature(check).parameters
        if sections.keys() >= names.keys():
            found.extend(check(**{name: sections[name] for name in names}))
    return found


def _check_groups(
    algorithm: AlgorithmConfig, rollout: RolloutConfig, dataset: DatasetConfig | None
) -> Iterator[Contradiction]:
    compares = isinstance(algorithm, RLOOConfig | GRPOConfig | DPOConfig | RPOConfig | REBELConfig)
    if compares and dataset is None and rollout.group_size < 2:
        yield Contradiction(
            ("rollout.group_size", "algorithm.kind"),
            f"{algorithm.kind} compares the completions of a prompt with each other, so it needs at least 2",
            'set 4, or algorithm.kind = "ppo"',
        )


def _check_dataset(
    algorithm: AlgorithmConfig, rollout: RolloutConfig, dataset: DatasetConfig | None
) -> Iterator[Contradiction]:
    if isinstance(algorithm, PolicyGradientConfig) and dataset is not None:
        yield Contradiction(
            ("dataset", "algorithm.kind"),
            f"{algorithm.kind} learns from what the present policy samples, not from a dataset",
            'leave the table out, or set algorithm.kind = "sft" or "dpo"',
        )
    if isinstance(algorithm, SFTConfig) and dataset is None and algorithm.top_k is None:
        yield Contradiction(
            ("algorithm.top_k", "algorithm.kind"),
            "sft on all of the policy's own samples teaches nothing",
            "set 1 for rejection sampling, or add a [dataset] table",
        )
    if isinstance(algorithm, DPOConfig | RPOConfig | REBELConfig) and (
        isinstance(dataset, MovieReviewDataset) and dataset.content == "demonstrations"
    ):
        yield Contradiction(
            ("dataset.content", "algorithm.kind"),
            f"{algorithm.kind} compares completions, and a demonstration stands alone",
            'set "comparisons"',
        )
    if isinstance(algorithm, DPOConfig) and (algorithm.variant == "conservative") != (
        algorithm.label_smoothing > 0
    ):
        yield Contradiction(
            ("algorithm.label_smoothing", "algorithm.variant"),
            "labels that may be wrong are what the conservative variant is for, and only it",
            'set 0.1, say, with variant = "conservative", or 0 with another',
        )
    if isinstance(algorithm, GRPOConfig) and algorithm.overlong_buffer_tokens > rollout.max_new_tokens:
        yield Contradiction(
            ("algorithm.overlong_buffer_tokens", "rollout.max_new_tokens"),
            f"the buffer lies before the limit, rollout.max_new_tokens = {rollout.max_new_tokens}",
            f"set {max(1, rollout.max_new_tokens // 4)}, say",
        )


def _check_batch(
    algorithm: AlgorithmConfig, trainer: TrainerConfig, learner: LearnerConfig
) -> Iterator[Contradiction]:
    if algorithm.num_minibatches > trainer.prompts_per_step:
        yield Contradiction(
            ("algorithm.num_minibatches", "trainer.prompts_per_step"),
            f"a mini-batch needs a prompt, and trainer.prompts_per_step is {trainer.prompts_per_step}",
            f"set {trainer.prompts_per_step} or less",
        )
    if learner.world_size > trainer.prompts_per_step:
        yield Contradiction(
            ("learner.world_size", "trainer.prompts_per_step"),
            f"a rank learns from whole prompts, and trainer.prompts_per_step is {trainer.prompts_per_step}",
            f"set {trainer.prompts_per_step} or less, or a larger trainer.prompts_per_step",
        )


def _check_kl_estimator(kl: KLConfig, learner: LearnerConfig) -> Iterator[Contradiction]:
    if kl.placement == "loss" and kl.estimator == "k1":
        yield Contradiction(
            ("kl.estimator", "kl.placement"),
            "in the loss the mean gradient of k1 is 0, so it holds nothing back",
            'set "k3" (GRPO), "k2" (reverse KL\'s gradient) or "exact"',
        )
    if kl.estimator == "exact" and learner.lora is None:
        yield Contradiction(
            ("kl.estimator", "learner.lora"),
            "the exact KL is taken to the base under the adapters, so it needs adapters",
            'add a [learner.lora] table, or set "k1"',
        )
    if kl.direction == "forward" and kl.estimator != "exact":
        yield Contradiction(
            ("kl.direction", "kl.estimator"),
            "estimators from sampled tokens are of the reverse KL",
            'set "reverse", or kl.estimator = "exact"',
        )


def _check_kl_controller(kl: KLConfig) -> Iterator[Contradiction]:
    if kl.controller == "adaptive" and kl.kl_target is None:
        yield Contradiction(
            ("kl.kl_target", "kl.controller"),
            "the adaptive controller needs a KL to steer to, in nats per completion",
            'set 6.0, say, or kl.controller = "fixed"',
        )


def _check_completion_length(model: ModelConfig, rollout: RolloutConfig) -> Iterator[Contradiction]:
    if rollout.max_new_tokens >= model.max_model_len:
        yield Contradiction(
            ("rollout.max_new_tokens", "model.max_model_len"),
            f"prompt and completion must fit into model.max_model_len = {model.max_model_len}",
            f"set less than {model.max_model_len}, or a larger model.max_model_len",
        )


def _check_token_budgets(
    model: ModelConfig, learner: LearnerConfig, reference: ReferenceConfig, rewards: list[RewardConfig]
) -> Iterator[Contradiction]:
    budgets = {"learner.token_budget": learner.token_budget, "reference.token_budget": reference.token_budget}
    for index, reward in enumerate(rewards):
        if isinstance(reward, RewardModelReward):
            budgets[f"rewards.{index}.token_budget"] = reward.token_budget
    for key, budget in budgets.items():
        if budget < model.max_model_len:
            yield Contradiction(
                (key, "model.max_model_len"),
                f"a forward pass must hold the longest sequence, model.max_model_len = {model.max_model_len}",
                f"set {model.max_model_len} or more",
            )


def _check_devices(rollout: RolloutConfig) -> Iterator[Contradiction]:
    gpus = rollout.resources.num_gpus
    if 0 < gpus < rollout.tensor_parallel:
        yield Contradiction(
            ("rollout.tensor_parallel", "rollout.resources.num_gpus"),
            f"an engine cannot be spread over more GPUs than its worker has, {gpus:g}",
            f"set {int(gpus) or 1}, or rollout.resources.num_gpus = {rollout.tensor_parallel}",
        )


def _check_rewards(rewards: list[RewardConfig]) -> Iterator[Contradiction]:
    for index, reward in enumerate(rewards):
        first = next(earlier for earlier, other in enumerate(rewards) if other.name == reward.name)
        if first < index:
            yield Contradiction(
                (f"rewards.{index}.name", f"rewards.{first}.name"),
                f"metrics and samples tell rewards apart by name, and rewards.{first} has this one",
                f'set "{reward.name}_{index}", say',
            )
    if all(reward.weight == 0 for reward in rewards):
        yield Contradiction(
            ("rewards.0.weight", *(f"rewards.{index}.weight" for index in range(1, len(rewards)))),
            "the score is the weighted sum of the rewards, and every weight is 0",
            "set 1.0",
        )


def _check_reward_model(
    prompts: PromptsConfig, rewards: list[RewardConfig], reward_model: RewardModelConfig | None
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
        and isinstance(prompts, MovieReviewPrompts)
        and reward_model.split_seed != prompts.split_seed
    ):
        yield Contradiction(
            ("reward_model.split_seed", "prompts.split_seed"),
            "with another seed than the prompts', the reward model would learn from the prompts' snippets",
            f"set {prompts.split_seed}",
        )


def _check_value_model(algorithm: AlgorithmConfig, rewards: list[RewardConfig]) -> Iterator[Contradiction]:
    if isinstance(algorithm, PPOConfig) and not any(
        isinstance(reward, RewardModelReward) for reward in rewards
    ):
        yield Contradiction(
            ("algorithm.kind", "rewards"),
            "the value model of ppo starts from a reward model, and no reward is one",
            'set "rloo", or add a reward with kind = "model"',
        )


_CHECKS: tuple[Callable[..., Iterator[Contradiction]], ...] = (
    _check_groups,
    _check_dataset,
    _check_batch,
    _check_kl_estimator,
    _check_kl_controller,
    _check_completion_length,
    _check_token_budgets,
    _check_devices,
    _check_rewards,
    _check_reward_model,
    _check_value_model,
)
