"""Rules between the sections that say how much is run, where: lengths, batches, budgets, devices."""

from collections.abc import Callable, Iterator

from actors.config import (
    SEEDS_PER_GROUP,
    DatasetConfig,
    FaultsConfig,
    ReferenceConfig,
    RewardConfig,
    RewardModelReward,
    RewardServerReward,
    RolloutConfig,
)
from core.config import ModelConfig
from learner.algorithm_config import AlgorithmConfig, ClippedConfig
from learner.config import KLConfig, LearnerConfig
from learner.kl_controllers import ERROR_CLIP
from orchestration.recipe.config import DeadlinesConfig, MetricsConfig, TrainerConfig, WeightPushConfig
from orchestration.recipe.contradiction import Contradiction
from orchestration.trackers.config import TrackersConfig


def _check_resampling(rollout: RolloutConfig) -> Iterator[Contradiction]:
    if rollout.max_resamples and rollout.group_size < 2:
        yield Contradiction(
            ("rollout.max_resamples", "rollout.group_size"),
            "a group of one has only one score, so every group would be replaced",
            "set 0, or a larger rollout.group_size",
        )
    if (rollout.max_resamples + 1) * rollout.group_size > SEEDS_PER_GROUP:
        yield Contradiction(
            ("rollout.max_resamples", "rollout.group_size"),
            f"a group has {SEEDS_PER_GROUP} seeds for all its completions and resamples",
            f"set at most {max(0, SEEDS_PER_GROUP // rollout.group_size - 1)}",
        )


def _check_autoscale(rollout: RolloutConfig) -> Iterator[Contradiction]:
    scale = rollout.autoscale
    if scale is None:
        return
    if scale.min_workers > scale.max_workers:
        yield Contradiction(
            ("rollout.autoscale.min_workers", "rollout.autoscale.max_workers"),
            f"no number of workers is within, rollout.autoscale.max_workers = {scale.max_workers}",
            f"set {scale.max_workers} or less",
        )
    if not scale.shrink_below < scale.grow_above:
        yield Contradiction(
            ("rollout.autoscale.shrink_below", "rollout.autoscale.grow_above"),
            "the number of workers would go up and down for ever",
            f"set less than {scale.grow_above:g}",
        )


def _check_first_workers(rollout: RolloutConfig) -> Iterator[Contradiction]:
    scale = rollout.autoscale
    if scale is None or scale.min_workers > scale.max_workers:
        return
    if not scale.min_workers <= rollout.workers <= scale.max_workers:
        yield Contradiction(
            ("rollout.workers", "rollout.autoscale.min_workers", "rollout.autoscale.max_workers"),
            f"the run would start outside of {scale.min_workers} to {scale.max_workers} workers",
            "set a number between the two",
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


def _check_offload(learner: LearnerConfig) -> Iterator[Contradiction]:
    least = {"none": 0, "optimizer": 1, "parameters": 3}[learner.offload]
    if learner.zero_stage < least:
        yield Contradiction(
            ("learner.offload", "learner.zero_stage"),
            f"what is offloaded is what ZeRO shards, and learner.zero_stage is {learner.zero_stage}",
            f'set learner.zero_stage = {least}, or offload = "none"',
        )


def _check_horizon(
    kl: KLConfig, trainer: TrainerConfig, rollout: RolloutConfig, datasets: list[DatasetConfig]
) -> Iterator[Contradiction]:
    if kl.controller != "adaptive":
        return
    per_prompt = 1 if datasets else rollout.group_size  # of a dataset's prompts at least
    num_sequences = trainer.prompts_per_step * per_prompt
    if ERROR_CLIP * num_sequences >= kl.horizon:
        yield Contradiction(
            ("kl.horizon", "trainer.prompts_per_step", "rollout.group_size"),
            f"with {num_sequences} completions a step one step could bring kl_coef to 0",
            f"set {10 * num_sequences}, say, and more than {ERROR_CLIP * num_sequences:g}",
        )


def _check_order(
    algorithm: AlgorithmConfig, trainer: TrainerConfig, datasets: list[DatasetConfig]
) -> Iterator[Contradiction]:
    if (trainer.order == "window") != (trainer.order_window > 0):
        yield Contradiction(
            ("trainer.order_window", "trainer.order"),
            'with trainer.order = "window" so many groups may be overtaken, with the others it says nothing',
            f"set {trainer.prompts_per_step}" if trainer.order == "window" else 'set 0, or order = "window"',
        )
    if trainer.order == "start":
        return
    if datasets:
        yield Contradiction(
            ("trainer.order", "datasets"), "texts of a dataset are not waited for", 'set "start"'
        )
    corrects = not isinstance(algorithm, ClippedConfig) or algorithm.importance_sampling != "none"
    if trainer.max_lag > 0 and not corrects:
        yield Contradiction(
            ("trainer.order", "algorithm.importance_sampling"),
            "who is slow lags more, so the lag goes with the length, and nothing would correct for it",
            'set "start", or algorithm.importance_sampling = "token"',
        )


def _check_push(weight_push: WeightPushConfig, deadlines: DeadlinesConfig) -> Iterator[Contradiction]:
    if weight_push.running == "finish" and weight_push.finish_s >= deadlines.push_s:
        yield Contradiction(
            ("weight_push.finish_s", "deadlines.push_s"),
            f"a worker would be given up while it finishes: a push may take {deadlines.push_s:g} s in all",
            f"set {deadlines.push_s / 2:g}, or a larger deadlines.push_s",
        )


def _check_silence(faults: FaultsConfig, deadlines: DeadlinesConfig) -> Iterator[Contradiction]:
    longest = deadlines.rollout_s / 2 - faults.heartbeat_s
    if faults.patience_s > longest:
        yield Contradiction(
            ("faults.silence_s", "deadlines.rollout_s"),
            "who is silent is replaced after twice as long, and what it had to do must be done by others within "
            f"deadlines.rollout_s = {deadlines.rollout_s:g}",
            f"set {longest / 2:g}, or a larger deadlines.rollout_s"
            if longest > 0
            else "set a larger deadlines.rollout_s",
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


def _check_devices(
    rollout: RolloutConfig, learner: LearnerConfig, reference: ReferenceConfig, rewards: list[RewardConfig]
) -> Iterator[Contradiction]:
    gpus = rollout.resources.num_gpus
    if gpus > 1 and gpus != int(gpus):
        yield Contradiction(
            ("rollout.resources.num_gpus",),
            "Ray shares out one GPU, or gives whole ones",
            f"set {int(gpus)} or {int(gpus) + 1}",
        )
    if rollout.tensor_parallel > 1 and 0 < gpus < rollout.tensor_parallel:
        yield Contradiction(
            ("rollout.tensor_parallel", "rollout.resources.num_gpus"),
            f"an engine cannot be spread over more GPUs than its worker has, {gpus:g}",
            f"set {int(gpus) or 1}, or rollout.resources.num_gpus = {rollout.tensor_parallel}",
        )
    alone = {"learner": learner.resources, "reference": reference.resources}
    alone |= {f"rewards.{index}": reward.resources for index, reward in enumerate(rewards)}
    for table, resources in alone.items():
        if resources.num_gpus > 1:
            yield Contradiction(
                (f"{table}.resources.num_gpus",), "a process of these computes on one GPU", "set 1"
            )
    if learner.world_size > 1 and 0 < learner.resources.num_gpus < 1:
        yield Contradiction(
            ("learner.resources.num_gpus", "learner.world_size"),
            "NCCL takes no two ranks on one GPU",
            "set 1",
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


def _check_discovery(metrics: MetricsConfig) -> Iterator[Contradiction]:
    if metrics.discovery_folder is not None and metrics.port is None:
        yield Contradiction(
            ("metrics.discovery_folder", "metrics.port"),
            "Prometheus is told an address there, and without metrics.port there is none",
            'set "none", or metrics.port = 0 for a free port',
        )


def _check_reward_servers(rewards: list[RewardConfig]) -> Iterator[Contradiction]:
    for index, reward in enumerate(rewards):
        if isinstance(reward, RewardServerReward) and reward.token_env and reward.token_file:
            yield Contradiction(
                (f"rewards.{index}.token_file", f"rewards.{index}.token_env"),
                f"a reward server has one token, and rewards.{index}.token_env names another",
                "leave one of them out",
            )


def _check_trackers(trackers: TrackersConfig) -> Iterator[Contradiction]:
    uri = trackers.mlflow.tracking_uri if trackers.mlflow else None
    if uri and "@" in uri.partition("://")[2].partition("/")[0]:
        yield Contradiction(
            ("trackers.mlflow.tracking_uri",),
            "the run folder keeps a copy of the recipe, so no user name or password may stand in it",
            "set the environment variables MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )


RUN_RULES: tuple[Callable[..., Iterator[Contradiction]], ...] = (
    _check_resampling,
    _check_autoscale,
    _check_batch,
    _check_offload,
    _check_horizon,
    _check_order,
    _check_push,
    _check_silence,
    _check_completion_length,
    _check_token_budgets,
    _check_devices,
    _check_rewards,
    _check_discovery,
    _check_reward_servers,
    _check_trackers,
)
START_RULES: tuple[Callable[..., Iterator[Contradiction]], ...] = (_check_first_workers,)
"""Rules of how a run starts, which the changes of a live one need not keep."""
