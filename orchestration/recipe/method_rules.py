"""Rules between the sections that say what is learned: algorithm, data, texts mixed in, adapters."""

from collections.abc import Callable, Iterator

from actors.config import (
    MAX_ADAPTER_RANK,
    DatasetConfig,
    LearnedTexts,
    MovieReviewDataset,
    MovieReviewPrompts,
    PromptsConfig,
    ReferenceConfig,
    RolloutConfig,
    RunDataset,
)
from learner.algorithm_config import (
    A2CConfig,
    ActorCriticConfig,
    AlgorithmConfig,
    DPOConfig,
    GRPOConfig,
    PolicyGradientConfig,
    REBELConfig,
    RLOOConfig,
    RPOConfig,
    SFTConfig,
)
from learner.config import KLConfig, LearnerConfig
from orchestration.alarm.config import AlarmConfig
from orchestration.recipe.config import (
    PretrainingConfig,
    RewardStageConfig,
    TrainerConfig,
    WeightPushConfig,
)
from orchestration.recipe.contradiction import Contradiction

LEAST_TEMPERATURE = 0.01
"""Below it vLLM takes this one instead."""


def _check_groups(
    algorithm: AlgorithmConfig, rollout: RolloutConfig, datasets: list[DatasetConfig]
) -> Iterator[Contradiction]:
    compares = isinstance(algorithm, RLOOConfig | GRPOConfig | DPOConfig | RPOConfig | REBELConfig)
    if compares and not datasets and rollout.group_size < 2:
        yield Contradiction(
            ("rollout.group_size", "algorithm.kind"),
            f"{algorithm.kind} compares the completions of a prompt with each other, so it needs at least 2",
            'set 4, or algorithm.kind = "ppo"',
        )


def _check_dataset(
    algorithm: AlgorithmConfig, rollout: RolloutConfig, datasets: list[DatasetConfig]
) -> Iterator[Contradiction]:
    if isinstance(algorithm, PolicyGradientConfig) and datasets:
        yield Contradiction(
            ("datasets", "algorithm.kind"),
            f"{algorithm.kind} learns from what the present policy samples, not from datasets",
            'leave them out, or set algorithm.kind = "sft" or "dpo"',
        )
    if isinstance(algorithm, SFTConfig) and not datasets and algorithm.top_k is None:
        yield Contradiction(
            ("algorithm.top_k", "algorithm.kind"),
            "sft on all of the policy's own samples teaches nothing",
            "set 1 for rejection sampling, or add a [[datasets]] table",
        )
    if isinstance(algorithm, SFTConfig) and not datasets and algorithm.top_k is not None:
        of_prompt = algorithm.top_k_of == "prompt"
        if of_prompt and algorithm.top_k >= rollout.group_size:
            yield Contradiction(
                ("algorithm.top_k", "rollout.group_size"),
                f"the best {algorithm.top_k} of {rollout.group_size} samples of a prompt are all of them",
                f"set less, or a larger rollout.group_size such as {4 * algorithm.top_k}",
            )
    for place, dataset in enumerate(datasets):
        if isinstance(dataset, LearnedTexts) and not dataset.completion_only_loss and algorithm.kind != "sft":
            yield Contradiction(
                (f"datasets.{place}.completion_only_loss", "algorithm.kind"),
                f"{algorithm.kind} compares the completions of a prompt, which all have it in common",
                'set true, or algorithm.kind = "sft"',
            )
        alone = isinstance(dataset, MovieReviewDataset) and dataset.content == "demonstrations"
        if alone and isinstance(algorithm, DPOConfig | RPOConfig | REBELConfig):
            yield Contradiction(
                (f"datasets.{place}.content", "algorithm.kind"),
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


def _check_selection(
    algorithm: AlgorithmConfig, rollout: RolloutConfig, trainer: TrainerConfig, datasets: list[DatasetConfig]
) -> Iterator[Contradiction]:
    if datasets or not isinstance(algorithm, SFTConfig) or algorithm.top_k is None:
        return
    of_step = trainer.prompts_per_step * rollout.group_size
    if algorithm.top_k_of == "step" and algorithm.top_k >= of_step:
        yield Contradiction(
            ("algorithm.top_k", "trainer.prompts_per_step", "rollout.group_size"),
            f"the best {algorithm.top_k} of the {of_step} samples of a step are all of them",
            f"set less, such as {max(1, of_step // 4)}",
        )


def _check_splits(
    prompts: PromptsConfig,
    datasets: list[DatasetConfig],
    pretraining: PretrainingConfig | None,
    reward_model: RewardStageConfig | None,
) -> Iterator[Contradiction]:
    """Texts are learned from in the part of the split that prompts do not come from, so it must be one split."""
    mixed_in = pretraining.datasets if pretraining else []
    rated = reward_model.datasets if reward_model else []
    learned = {f"datasets.{place}": texts for place, texts in enumerate(datasets)}
    learned |= {f"reward_model.datasets.{place}": texts for place, texts in enumerate(rated)}
    learned |= {f"pretraining.datasets.{place}": texts for place, texts in enumerate(mixed_in)}
    for key, texts in learned.items():
        if (
            isinstance(texts, MovieReviewDataset)
            and isinstance(prompts, MovieReviewPrompts)
            and texts.split_seed != prompts.split_seed
        ):
            yield Contradiction(
                (f"{key}.split_seed", "prompts.split_seed"),
                "with another seed than the prompts', held-out snippets would be learned from",
                f"set {prompts.split_seed}",
            )


def _check_pretraining(
    algorithm: AlgorithmConfig, pretraining: PretrainingConfig | None
) -> Iterator[Contradiction]:
    for place, dataset in enumerate(pretraining.datasets if pretraining else []):
        if isinstance(dataset, RunDataset):
            yield Contradiction(
                (f"pretraining.datasets.{place}.kind",),
                "what a policy has sampled does not hold it near human text",
                'set "jsonl" or "movie-reviews"',
            )
        if isinstance(dataset, LearnedTexts) and dataset.heldout_fraction:
            yield Contradiction(
                (f"pretraining.datasets.{place}.heldout_fraction",),
                "the texts that are mixed in are all learned from",
                "leave it out",
            )
    if pretraining and isinstance(algorithm, ActorCriticConfig) and algorithm.value_warmup_steps:
        yield Contradiction(
            ("algorithm.value_warmup_steps", "pretraining"),
            "in the warm-up the policy makes no step that texts could be mixed into",
            "set 0, or leave [pretraining] out",
        )


def _check_kl_controller(kl: KLConfig) -> Iterator[Contradiction]:
    if kl.controller == "fixed":
        return
    if kl.kl_target is None:
        yield Contradiction(
            ("kl.kl_target", "kl.controller"),
            f"the {kl.controller} controller needs a KL to steer by, in nats per completion",
            'set 6.0, say, or kl.controller = "fixed"',
        )
    if kl.kl_coef == 0:
        yield Contradiction(
            ("kl.kl_coef", "kl.controller"),
            f"the {kl.controller} controller multiplies the coefficient, and 0 stays 0",
            'set 0.05, say, or kl.controller = "fixed"',
        )


def _check_alarm(alarm: AlarmConfig, kl: KLConfig) -> Iterator[Contradiction]:
    if alarm.action == "raise_kl" and kl.kl_coef == 0:
        yield Contradiction(
            ("alarm.action", "kl.kl_coef"),
            "a kl_coef of 0 stays 0, whatever it is multiplied by",
            'set "warn", "pause" or "stop", or a kl.kl_coef above 0',
        )


def _check_dropout(
    algorithm: AlgorithmConfig, datasets: list[DatasetConfig], learner: LearnerConfig
) -> Iterator[Contradiction]:
    if learner.dropout > 0 and (isinstance(algorithm, PolicyGradientConfig) or not datasets):
        yield Contradiction(
            ("learner.dropout", "algorithm.kind"),
            "the policy that learns from its own samples must be the one that sampled, not one with parts left out",
            "set 0, or learn from [[datasets]]",
        )


def _check_temperature(
    rollout: RolloutConfig, datasets: list[DatasetConfig], trainer: TrainerConfig
) -> Iterator[Contradiction]:
    if 0 < rollout.temperature < LEAST_TEMPERATURE:
        yield Contradiction(
            ("rollout.temperature",),
            f"the engine samples at {LEAST_TEMPERATURE} at least, and the learner would divide by another number",
            f"set {LEAST_TEMPERATURE} or more, or 0 where nothing is learned from samples",
        )
    if rollout.temperature == 0 and not datasets:
        yield Contradiction(
            ("rollout.temperature", "datasets"),
            "greedy completions are certain and all the same, so nothing is learned from them",
            "set 1.0, or learn from [[datasets]]",
        )
    if rollout.temperature == 0 and trainer.best_of > 1:
        yield Contradiction(
            ("trainer.best_of", "rollout.temperature"),
            "greedy completions of a prompt are all the same, so none is the best",
            "set 0, or rollout.temperature = 1.0",
        )


def _check_reference(reference: ReferenceConfig, learner: LearnerConfig) -> Iterator[Contradiction]:
    if reference.adapters_off and learner.lora is None:
        yield Contradiction(
            ("reference.adapters_off", "learner.lora"),
            "a learner without adapters has no untouched base to be the reference",
            "set false, or add a [learner.lora] table",
        )


def _check_weight_push(weight_push: WeightPushConfig, learner: LearnerConfig) -> Iterator[Contradiction]:
    if weight_push.form == "adapters" and learner.lora is None:
        yield Contradiction(
            ("weight_push.form", "learner.lora"),
            "a learner without adapters has only whole weights to push",
            'set "merged", or add a [learner.lora] table',
        )
    elif weight_push.form == "adapters" and learner.lora and learner.lora.rank > MAX_ADAPTER_RANK:
        yield Contradiction(
            ("learner.lora.rank", "weight_push.form"),
            f"the engines take adapters of rank {MAX_ADAPTER_RANK} at most",
            f'set {MAX_ADAPTER_RANK} or less, or weight_push.form = "merged"',
        )


def _check_lag(algorithm: AlgorithmConfig, trainer: TrainerConfig) -> Iterator[Contradiction]:
    if isinstance(algorithm, A2CConfig) and trainer.max_lag:
        yield Contradiction(
            ("trainer.max_lag", "algorithm.kind"),
            "a2c takes no ratio, so nothing corrects for rollouts of older policies",
            'set 0, or algorithm.kind = "ppo" with importance_sampling = "token"',
        )


METHOD_RULES: tuple[Callable[..., Iterator[Contradiction]], ...] = (
    _check_groups,
    _check_dataset,
    _check_selection,
    _check_splits,
    _check_pretraining,
    _check_kl_controller,
    _check_alarm,
    _check_dropout,
    _check_temperature,
    _check_reference,
    _check_weight_push,
    _check_lag,
)
