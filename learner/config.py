"""Recipe tables of the learner side: the optimizer group, KL control, the reward model.

The algorithm's table is in `learner/algorithm_config.py`.
"""

from typing import Literal

from pydantic import Field

from core.config import MAX_SEED, Resources, Section

MIN_RANKING_SIZE, MAX_RANKING_SIZE = 4, 9
"""Texts that one ranking compares (arXiv:2203.02155, sec. 3.5)."""


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
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What of a rank's share is in the host's memory instead of its GPU's (arXiv:2101.06840): master weights and
    optimizer state, which are then updated by the CPU (stages 1 to 3); or the weights as well (stage 3)."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of the policy."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay at the peak, or fall to 0 at the last step, linearly or along a cosine."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the mean of gradients."""
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's decay of the mean of squared gradients."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient of a step."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout while learning from datasets: of what adapters see, or without adapters of the attention."""
    lora: LoRAConfig | None = None
    """Train adapters instead of all weights; `weight_push.form` says how the rollout workers get them."""
    token_budget: int = Field(default=1024, ge=1)
    """Tokens of one packed micro-batch."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a fifth slower."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """What one rank's device can do at best in this precision, to report the model FLOPs utilization."""
    resources: Resources = Resources()
    """What each learner rank asks of Ray."""


class KLConfig(Section):
    """The leash: kl_coef times the KL of every token, taken off its reward or added to the loss."""

    kl_coef: float = Field(default=0.05, ge=0)
    """Coefficient of the penalty (the first one, if it adapts)."""
    placement: Literal["reward", "loss"] = "reward"
    """A penalty in the token rewards (PPO), or a term of the loss (GRPO)."""
    estimator: Literal["k1", "k2", "k3", "abs", "exact"] = "k1"
    """Estimator of a token's KL. In the reward k1 is unbiased, in the loss k2's gradient is; `exact` sums over
    the vocabulary, with the adapters switched off as the reference. In the reward it is in the loss as well, for
    the KL at a token is none of that token's doing (`learner/kl_penalty.py`)."""
    direction: Literal["reverse", "forward"] = "reverse"
    """Of the exact KL: from the policy to the reference, or back; either at the states that the policy visits."""
    controller: Literal["fixed", "adaptive", "budget"] = "fixed"
    """`adaptive` steers towards `kl_target`, from below as well (arXiv:1909.08593, section 2.2); `budget` leaves
    `kl_coef` alone until the KL comes near `kl_target`, and holds it there."""
    kl_target: float | None = Field(default=None, gt=0)
    """KL to steer to, or the budget, in nats per completion."""
    horizon: int = Field(default=1000, ge=1)
    """Completions over which the adaptive coefficient changes by up to a fifth."""


class LiveLearnerConfig(Section):
    """What of the learner may be another from one step to the next."""

    kl_coef: float | None = Field(ge=0)
    """Coefficient of the penalty from now on; None: as it is, which is where its controller has brought it."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of the policy."""
    kl_target: float | None = Field(gt=0)
    """KL that an adaptive coefficient is steered to, in nats per completion."""
    num_steps: int = Field(ge=1)
    """The last step, which the learning-rate schedule ends at."""


class RewardTuningConfig(Section):
    """Train a reward model's backbone too, from where the head on frozen features left it."""

    steps: int = Field(default=100, ge=1)
    """Optimizer steps."""
    rankings_per_step: int = Field(default=16, ge=1)
    """Pairs, or rankings of several texts, of one step."""
    world_size: int = Field(default=1, ge=1)
    """Ranks that share the rankings of each step: processes of the machine that trains the reward model."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """At the first step; it falls linearly to 0."""
    nll_coef: float = Field(default=0.0, ge=0)
    """Weight of the preferred texts' mean negative log-likelihood, which regularises. arXiv:2406.10216."""
    lora: LoRAConfig | None = LoRAConfig()
    """Train adapters, which are merged at the end, or with "none" all weights."""


class RewardModelConfig(Section):
    """A reward model learned from ratings: a linear head on a truncated backbone."""

    data: Literal["movie-reviews"] = "movie-reviews"
    """The ratings, where no datasets are given."""
    split_seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the split; must be the prompts' one, so that no snippet is in two."""
    num_layers: int = Field(default=18, ge=1)
    """Backbone layers that are kept, from the bottom."""
    train_snippets: int = Field(default=4000, ge=2)
    """Rated snippets to learn from."""
    heldout_snippets: int = Field(default=1000, ge=2)
    """Rated snippets to report accuracy on."""
    cut_copies: int = Field(default=0, ge=0)
    """Copies of each snippet, cut after a random token, to learn from as well. Completions end at
    `max_new_tokens`, in the middle of a sentence, and the value model judges every prefix."""
    loss: Literal["bradley-terry", "margin", "k-wise"] = "bradley-terry"
    """What is learned: the better of two, by how much (arXiv:2307.09288), or rankings (arXiv:2203.02155)."""
    margin_scale: float = Field(default=1.0, gt=0)
    """Of the margin loss: how far apart scores should be for each point between two ratings."""
    ranking_size: int = Field(default=4, ge=MIN_RANKING_SIZE, le=MAX_RANKING_SIZE)
    """Of the k-wise loss: texts of a ranking."""
    num_pairs: int = Field(default=60000, ge=1)
    """Preference pairs drawn from the training snippets; of datasets at most so many."""
    min_rating_difference: float = Field(default=0.25, gt=0)
    """Pairs whose mean ratings are closer than this are not used; rankings use all that differ."""
    l2: float = Field(default=1e-3, ge=0)
    """Weight of the squared norm of the head in the loss."""
    tuning: RewardTuningConfig | None = None
    """Then train the backbone as well; left out, it stays frozen."""
    normalize_on: int = Field(default=0, ge=0)
    """Shift the scores to mean 0 on one completion of so many prompts by the untrained policy; 0: do not."""
    token_budget: int = Field(default=1024, ge=1)
    """Tokens of one forward pass."""
    threads: int = Field(default=2, ge=1)
    """Threads of the matrix products."""
