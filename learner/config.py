"""Recipe tables of the learner side: the optimizer group, the algorithm, KL control, the reward model."""

from typing import Annotated, Literal

from pydantic import Field

from core.config import Resources, Section


class LoRAConfig(Section):
    """Train low-rank adapters beside frozen weights. arXiv:2106.09685."""

    rank: int = Field(default=16, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""


class LearnerConfig(Section):
    """The learner: a group of processes that DeepSpeed shards the training state over."""

    world_size: int = Field(default=1, ge=1)
    """Number of learner ranks."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What ZeRO shards: 0 nothing, 1 optimizer state, 2 also gradients, 3 also weights."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of the policy."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    lr_schedule: Literal["constant", "linear"] = "constant"
    """After the warm-up: stay at the peak, or fall linearly to 0 at the last step."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the mean of gradients."""
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's decay of the mean of squared gradients."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient of a step."""
    lora: LoRAConfig | None = None
    """Train adapters instead of all weights; the rollout workers get the merged weights."""
    token_budget: int = Field(default=1024, ge=1)
    """Tokens of one packed micro-batch."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a fifth slower."""
    resources: Resources = Resources()
    """What each learner rank asks of Ray."""


class RLOOConfig(Section):
    """REINFORCE leave-one-out: the other completions of the prompt are the baseline. arXiv:2402.14740."""

    kind: Literal["rloo"]
    num_epochs: int = Field(default=1, ge=1)
    """Passes over the rollouts of a step."""
    num_minibatches: int = Field(default=1, ge=1)
    """Optimizer steps per pass."""
    clip_range_low: float = Field(default=0.2, gt=0, lt=1)
    """The ratio's lower clip is 1 - clip_range_low."""
    clip_range_high: float = Field(default=0.2, gt=0)
    """The ratio's upper clip is 1 + clip_range_high."""
    scale_advantages: bool = True
    """Divide the advantages by the batch's standard deviation."""


class PPOConfig(Section):
    """Proximal policy optimization with a value model and GAE. arXiv:1707.06347, arXiv:1506.02438."""

    kind: Literal["ppo"]
    num_epochs: int = Field(default=1, ge=1)
    """Passes over the rollouts of a step."""
    num_minibatches: int = Field(default=1, ge=1)
    """Optimizer steps per pass."""
    clip_range_low: float = Field(default=0.2, gt=0, lt=1)
    """The ratio's lower clip is 1 - clip_range_low."""
    clip_range_high: float = Field(default=0.2, gt=0)
    """The ratio's upper clip is 1 + clip_range_high."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """GAE's trade of bias (0) against variance (1)."""
    value_learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of the value model."""
    value_clip_range: float | None = Field(default=0.2, gt=0)
    """How far a value may move from its old one within a step, or none."""
    value_warmup_steps: int = Field(default=0, ge=0)
    """First steps that train the value model alone, so that the policy meets sensible advantages."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of a step to mean 0 and variance 1."""


AlgorithmConfig = Annotated[RLOOConfig | PPOConfig, Field(discriminator="kind")]


class KLConfig(Section):
    """The leash: a per-token KL penalty in the reward, r_t = -kl_coef * KL_t, plus the score at the end."""

    kl_coef: float = Field(default=0.05, ge=0)
    """Coefficient of the penalty (the first one, if it adapts)."""
    estimator: Literal["k1", "k2", "k3", "abs"] = "k1"
    """Estimator of the KL of a sampled token: k1 is log(policy / reference), unbiased."""
    controller: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive` steers the coefficient towards `kl_target`. arXiv:1909.08593, section 2.2."""
    kl_target: float | None = Field(default=None, gt=0)
    """KL to steer to, in nats per completion."""
    horizon: int = Field(default=1000, ge=1)
    """Completions over which the adaptive coefficient changes by up to a fifth."""


class RewardModelConfig(Section):
    """A reward model learned from human ratings: a linear head on a frozen, truncated backbone."""

    data: Literal["movie-reviews"] = "movie-reviews"
    """The ratings."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the split; must be the prompts' one, so that no snippet is in two."""
    num_layers: int = Field(default=18, ge=1)
    """Backbone layers that are kept, from the bottom."""
    train_snippets: int = Field(default=4000, ge=2)
    """Rated snippets to learn from."""
    heldout_snippets: int = Field(default=1000, ge=2)
    """Rated snippets to report accuracy on."""
    cut_copies: int = Field(default=0, ge=0)
    """So many copies of each snippet, cut after a random token, are learned from as well: completions end at
    `max_new_tokens`, in the middle of a sentence, and the value model judges every prefix."""
    num_pairs: int = Field(default=60000, ge=1)
    """Preference pairs drawn from the training snippets."""
    min_rating_difference: float = Field(default=0.25, gt=0)
    """Pairs whose mean ratings are closer than this are not used."""
    l2: float = Field(default=1e-3, ge=0)
    """Weight of the squared norm of the head in the loss."""
    token_budget: int = Field(default=1024, ge=1)
    """Tokens of one forward pass."""
    threads: int = Field(default=2, ge=1)
    """Threads of the matrix products."""
