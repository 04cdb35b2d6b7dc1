"""Recipe table `[algorithm]`: one section a method, told apart by `kind`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from core.config import Section

Aggregation = Literal["token", "sequence", "constant"]


class UpdatesConfig(Section):
    """How often the rollouts of a step are learned from."""

    num_epochs: int = Field(default=1, ge=1)
    """Passes over the rollouts of a step."""
    num_minibatches: int = Field(default=1, ge=1)
    """Optimizer steps per pass."""


class PolicyGradientConfig(Section):
    """What every policy gradient has."""

    aggregation: Aggregation = "token"
    """What weighs the same: every token, every sequence, or tokens by a constant. arXiv:2503.20783."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus, per token."""


class ClippedConfig(UpdatesConfig, PolicyGradientConfig):
    """The clipped surrogate and what may be added to it. arXiv:1707.06347."""

    clip_range_low: float | None = Field(default=None, gt=0, lt=1)
    """1 minus this is the ratio's lower clip: left out 0.2, or for a ratio of the sequence 3e-4."""
    clip_range_high: float | None = Field(default=None, gt=0)
    """1 plus this is the ratio's upper clip: left out 0.2, or for a ratio of the sequence 4e-4."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bounds the loss of tokens with a negative advantage at this times it, or none. arXiv:1912.09729."""
    ratio: Literal["token", "sequence"] = "token"
    """Probability ratio of each token, or one of the whole sequence, its geometric mean. arXiv:2507.18071."""
    importance_sampling: Literal["none", "token", "sequence"] = "none"
    """Weigh tokens by policy / behavior probability at the start of the step, against lag and mismatch."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Largest such weight."""
    max_approx_kl: float | None = Field(default=None, gt=0)
    """Leave out the rest of a step's updates once the policy is so far, in nats a token, from what its ratios are
    to: what sampled, or with `importance_sampling` the policy at the start of the step."""

    @property
    def clip_range(self) -> tuple[float, float]:
        """(low, high). A geometric mean of token ratios stays far closer to 1 than they do: GSPO clips it at 3e-4
        and 4e-4 (arXiv:2507.18071, sec. 5.1)."""
        low, high = (3e-4, 4e-4) if self.ratio == "sequence" else (0.2, 0.2)
        return (
            low if self.clip_range_low is None else self.clip_range_low,
            high if self.clip_range_high is None else self.clip_range_high,
        )


class RLOOConfig(ClippedConfig):
    """REINFORCE leave-one-out: the other completions of the prompt are the baseline. arXiv:2402.14740."""

    kind: Literal["rloo"]
    scale_advantages: bool = True
    """Divide the advantages by the batch's standard deviation."""


class GRPOConfig(ClippedConfig):
    """Group relative policy optimization, and by option Dr. GRPO, DAPO, GSPO. arXiv:2402.03300."""

    kind: Literal["grpo"]
    aggregation: Aggregation = "sequence"
    """What weighs the same: every token (DAPO), every sequence (GRPO), tokens by a constant (Dr. GRPO)."""
    scale_by_std: bool = True
    """Divide advantages by their group's standard deviation; false is Dr. GRPO. arXiv:2503.20783."""
    overlong_buffer_tokens: int = Field(default=0, ge=0)
    """The score falls by up to 1 over the last so many tokens before the limit. arXiv:2503.14476, eq. 13."""


class ReinforceConfig(ClippedConfig):
    """REINFORCE++: no value model and no groups, advantages normalised over the batch. arXiv:2501.03262."""

    kind: Literal["reinforce++"]


class ActorCriticConfig(PolicyGradientConfig):
    """A value model that starts from the reward model or the policy, and GAE over it. arXiv:1506.02438."""

    value_init: Literal["reward-model", "policy"] = "reward-model"
    """What the value model starts from: the reward model with the largest weight, on the scale of its own scores (a
    weight other than 1 it has to learn), or the policy with a head of 0, which knows nothing yet: give it
    `value_warmup_steps`. The rewards may then be functions alone."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """GAE's trade of bias (0) against variance (1)."""
    value_learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of the value model."""
    value_warmup_steps: int = Field(default=0, ge=0)
    """First steps that train the value model alone, so that the policy meets sensible advantages."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of a step to mean 0 and variance 1."""


class A2CConfig(ActorCriticConfig):
    """Advantage actor-critic: one update a step along the policy gradient, so no ratio and no clip.

    arXiv:1602.01783, in step. On-policy it is PPO of one epoch of one mini-batch (arXiv:2205.09123).
    """

    kind: Literal["a2c"]
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    """GAE's trade of bias (0) against variance (1). 1 is the return to the end, less the value."""
    whiten_advantages: bool = False
    """Shift and scale the advantages of a step to mean 0 and variance 1."""
    num_epochs: Literal[1] = 1
    """A second pass would need ratios: that is PPO."""
    num_minibatches: Literal[1] = 1
    """Later mini-batches would need ratios: that is PPO."""
    value_clip_range: ClassVar[None] = None


class PPOConfig(ClippedConfig, ActorCriticConfig):
    """Proximal policy optimization with a value model and GAE. arXiv:1707.06347, arXiv:1506.02438."""

    kind: Literal["ppo"]
    value_clip_range: float | None = Field(default=0.2, gt=0)
    """How far a value may move from its old one within a step, or none."""


class SFTConfig(UpdatesConfig):
    """Supervised fine-tuning on completions. On sampled ones, the best of a group: rejection sampling."""

    kind: Literal["sft"]
    top_k: int | None = Field(default=None, ge=1)
    """Learn from the so many best scored completions alone; left out: from all. arXiv:2307.09288, sec. 3.2.3."""
    top_k_of: Literal["prompt", "step"] = "prompt"
    """The best of each prompt, or of all completions of a step."""


class DPOConfig(UpdatesConfig):
    """Direct preference optimization, on the best and the worst completion of a group. arXiv:2305.18290."""

    kind: Literal["dpo"]
    variant: Literal["sigmoid", "ipo", "conservative"] = "sigmoid"
    """Loss on the pair: DPO, IPO (arXiv:2310.12036), or DPO for labels that may be wrong."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the implicit KL penalty."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a label is wrong; for the conservative variant."""
    nll_coef: float = Field(default=0.0, ge=0)
    """Weight of the chosen completion's negative log-likelihood, per token of it, at `rollout.temperature` like all
    log-probs. arXiv:2404.19733, eq. 1."""
    weight_by_reward: bool = False
    """Weigh each pair by sigmoid(score gap), so that clear preferences count more."""


class RPOConfig(UpdatesConfig):
    """Reward-aware preference optimization: the margin follows the reward gap. arXiv:2406.11704."""

    kind: Literal["rpo"]
    beta: float = Field(default=0.1, gt=0)
    """Strength of the implicit KL penalty."""
    eta: float = Field(default=1.0, gt=0)
    """Scale of the reward gap."""


class REBELConfig(UpdatesConfig):
    """Regression to relative rewards, on two completions of a prompt. arXiv:2404.16767."""

    kind: Literal["rebel"]
    eta: float = Field(default=1.0, gt=0)
    """Size of the policy's step: the log-ratio gap aims at eta times the reward gap."""


PolicyGradientAlgorithm = RLOOConfig | GRPOConfig | ReinforceConfig | A2CConfig | PPOConfig
PreferenceAlgorithm = DPOConfig | RPOConfig | REBELConfig
AlgorithmConfig = Annotated[
    PolicyGradientAlgorithm | SFTConfig | PreferenceAlgorithm, Field(discriminator="kind")
]


def learns_from_gaps(algorithm: AlgorithmConfig) -> str | None:
    """The setting by which it matters how much better a text of a pair is; None: which one is better is enough."""
    match algorithm:
        case RPOConfig() | REBELConfig():
            return f'algorithm.kind = "{algorithm.kind}"'
        case DPOConfig(weight_by_reward=True):
            return "algorithm.weight_by_reward"
        case _:
            return None
