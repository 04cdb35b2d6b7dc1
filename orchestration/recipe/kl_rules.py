"""Rules about how the policy is compared: the KL's estimator, direction and placement, and REBEL's log-ratios."""

from collections.abc import Callable, Iterator

from actors.config import DatasetConfig, RolloutConfig, RunDataset
from actors.decoding import decoding_of
from learner.algorithm_config import AlgorithmConfig, GRPOConfig, PolicyGradientConfig, REBELConfig
from learner.config import KLConfig, LearnerConfig
from orchestration.alarm.config import AlarmConfig
from orchestration.recipe.contradiction import Contradiction


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


def _check_kl_is_used(
    kl: KLConfig, algorithm: AlgorithmConfig, alarm: AlarmConfig
) -> Iterator[Contradiction]:
    if isinstance(algorithm, PolicyGradientConfig):
        return
    if kl.controller != "fixed":
        yield Contradiction(
            ("kl.controller", "algorithm.kind"),
            f"{algorithm.kind} has no KL penalty, so no coefficient of it steers anything",
            'set "fixed", or algorithm.kind = "rloo"',
        )
    if alarm.action == "raise_kl":
        yield Contradiction(
            ("alarm.action", "algorithm.kind"),
            f"{algorithm.kind} has no KL penalty that could be raised",
            'set "warn", "pause" or "stop"',
        )


def _check_exact_kl(kl: KLConfig, algorithm: AlgorithmConfig) -> Iterator[Contradiction]:
    if kl.estimator == "exact" and kl.placement == "reward" and isinstance(algorithm, GRPOConfig):
        yield Contradiction(
            ("kl.placement", "algorithm.kind"),
            "part of the exact KL's gradient is in the loss, and grpo scales the part in the reward group by group",
            'set "loss", or algorithm.kind = "rloo"',
        )


def _check_forward_kl(kl: KLConfig, rollout: RolloutConfig) -> Iterator[Contradiction]:
    if kl.direction == "forward" and kl.estimator == "exact" and decoding_of(rollout).truncates:
        yield Contradiction(
            ("kl.direction", "rollout.top_p", "rollout.top_k", "rollout.min_p"),
            "the reference keeps tokens that the truncated policy cannot sample, so the forward KL is infinite",
            'set "reverse", or leave out rollout.top_p, rollout.top_k and rollout.min_p',
        )


def _check_log_ratios(
    algorithm: AlgorithmConfig, datasets: list[DatasetConfig], rollout: RolloutConfig
) -> Iterator[Contradiction]:
    texts = any(not isinstance(dataset, RunDataset) for dataset in datasets)
    if isinstance(algorithm, REBELConfig) and texts and decoding_of(rollout).truncates:
        yield Contradiction(
            ("algorithm.kind", "rollout.top_p", "rollout.top_k", "rollout.min_p"),
            "texts of a dataset count as samples over the whole vocabulary, and the policy's would be cut off",
            "leave out rollout.top_p, rollout.top_k and rollout.min_p",
        )


KL_RULES: tuple[Callable[..., Iterator[Contradiction]], ...] = (
    _check_kl_estimator,
    _check_kl_is_used,
    _check_exact_kl,
    _check_forward_kl,
    _check_log_ratios,
)
