"""A recipe: every section composed into one document.

Each section checks itself; `contradictions.py` holds the checks that span sections, and `recipe.py` reads a
file into a `Recipe` and reports what both find.
"""

from typing import Literal

from pydantic import Field

from actors.config import (
    DatasetConfig,
    FaultsConfig,
    PromptsConfig,
    ReferenceConfig,
    RewardConfig,
    RolloutConfig,
)
from core.config import MAX_SEED, ModelConfig, Section
from learner.algorithm_config import AlgorithmConfig
from learner.config import KLConfig, LearnerConfig, RewardModelConfig
from orchestration.alarm.config import AlarmConfig
from orchestration.trackers.config import TrackersConfig


class TrainerConfig(Section):
    """The loop: how many steps, of how many prompts, and what is kept on the way."""

    steps: int = Field(ge=1)
    """Training steps. Each takes fresh rollouts and ends with one weight push."""
    prompts_per_step: int = Field(ge=1)
    """Prompts of one step; times `rollout.group_size` completions."""
    max_lag: int = Field(default=0, ge=0)
    """Steps that rollouts may lag behind the learner. 0 is synchronous training."""
    order: Literal["start", "window", "completion"] = "start"
    """Which groups a step trains on: in the order of their start, at most `order_window` of them passed over while
    they are not done, or whichever are done first. `max_lag` holds in each; set `algorithm.importance_sampling`."""
    order_window: int = Field(default=0, ge=0)
    """Groups that one started later may overtake, with order = "window"."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0: only at the end and when interrupted."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """Checkpoints kept, the newest."""
    heldout_prompts: int = Field(default=64, ge=1)
    """Held-out prompts of the comparison before and after."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between evaluations on the held-out prompts, the best of which is kept as model-best; 0: none."""
    best_of: int = Field(default=0, ge=0)
    """Compare with the best of so many completions a held-out prompt of the untrained policy, too; 0: do not."""
    save_model: bool = True
    """Write the trained policy as a Hugging Face checkpoint at the end."""

    @property
    def max_overtaken(self) -> int:
        """Groups that one started later may overtake."""
        match self.order:
            case "start":
                return 0
            case "window":
                return self.order_window
            case "completion":
                return self.max_lag * self.prompts_per_step  # all that are ever started ahead


class PretrainingConfig(Section):
    """PPO-ptx: the likelihood of texts, mixed into every update of the policy. arXiv:2203.02155, eq. 2."""

    coef: float = Field(gt=0)
    """Weight of the texts' mean negative log-likelihood beside the policy's loss."""
    texts_per_step: int = Field(default=16, ge=1)
    """Texts of each step; every update of the step learns from them."""
    datasets: list[DatasetConfig] = Field(min_length=1)
    """Where the texts come from; of a group with several, the best rated one is used."""


class RewardStageConfig(RewardModelConfig):
    """A reward model learned from ratings: a linear head on a truncated backbone. From the demo's snippets, or from
    datasets."""

    datasets: list[DatasetConfig] = Field(default=[])
    """Learned from instead of the demo's snippets: preferences, rated completions, or a run's samples."""
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Of datasets: share of the prompts whose groups are not learned from but measured on."""


PROBE_GAPS = {"float32": 3e-4, "bfloat16": 0.3}
"""By dtype, in nats: above what engine and learner make of the same weights (SmolLM2-135M on CPUs: 1e-5 and 0.13),
and below what most single matrices set to zero make of them (0.13 to 2)."""


class WeightPushConfig(Section):
    """How new weights get from the learner into the engines: verified. On other nodes than the learner's they come
    through Ray's object store, else through shared memory."""

    form: Literal["merged", "adapters"] = "merged"
    """All weights, adapters added in, or the adapters of [learner.lora] alone: a small part of the bytes, but
    engines sample more slowly with them, on CPUs at half the speed."""
    max_probe_gap: float | None = Field(default=None, gt=0)
    """Largest mean difference, in nats, between the log-probs of engine and learner on the probe sequence after a
    push; left out: 3e-4 in float32, 0.3 in bfloat16."""
    running: Literal["keep", "resample", "finish"] = "keep"
    """Running completions go on under the new weights, are sampled again with the same seeds, or are finished
    before the weights are loaded, while new prompts wait. Only "keep" mixes versions in a completion."""
    finish_s: float = Field(default=60, gt=0)
    """Longest wait for them with running = "finish"; what runs on after it is sampled again."""

    @property
    def drain_s(self) -> float | None:
        """Longest wait for running completions, the rest of which is sampled again; None if they are kept."""
        match self.running:
            case "keep":
                return None
            case "resample":
                return 0.0
            case "finish":
                return self.finish_s


class MetricsConfig(Section):
    """The run's Prometheus endpoint."""

    host: str = "127.0.0.1"
    """Address that /metrics listens on. It asks for no password: open it to others behind a network policy only."""
    port: int | None = Field(default=0, ge=0, le=65535)
    """Port of /metrics; 0 picks a free one, and the run folder says which."""
    discovery_folder: str | None = None
    """Folder in which Prometheus finds the runs of this machine: each says its address there while it lives. One
    that fails is left there, so that it is missed."""


class DashboardConfig(Section):
    """The live page, served by the run itself. `leash dash RUN` shows the same, also afterwards."""

    port: int | None = Field(default=None, ge=0, le=65535)
    """Port of the page; 0 picks a free one, and the run says which. Left out: no page."""
    host: str = "127.0.0.1"
    """Address of the page. On any but this machine's own it asks for a token, which the run prints."""


class ClusterConfig(Section):
    """The Ray cluster that the run is on."""

    autoscaling: bool = False
    """It adds nodes when workers wait for room. Then only the learner must fit from the start, and rollout workers
    are not kept near it."""


class DeadlinesConfig(Section):
    """Longest waits across processes. Each ends in an error that names who did not answer."""

    start_s: float = Field(default=300, gt=0)
    """For a worker process to come up with its model."""
    rollout_s: float = Field(default=300, gt=0)
    """For the rollouts of one step."""
    learn_s: float = Field(default=600, gt=0)
    """For one optimizer phase."""
    push_s: float = Field(default=120, gt=0)
    """For one verified weight push."""


class Recipe(Section):
    """Everything that a run needs to know."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9-]*$")
    """Name of the recipe; run folders start with it."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of prompts, sampling, shuffling and evaluation."""
    model: ModelConfig
    prompts: PromptsConfig
    datasets: list[DatasetConfig] = Field(default=[])
    rollout: RolloutConfig = RolloutConfig()
    reference: ReferenceConfig = ReferenceConfig()
    rewards: list[RewardConfig] = Field(min_length=1)
    reward_model: RewardStageConfig | None = None
    learner: LearnerConfig = LearnerConfig()
    algorithm: AlgorithmConfig
    pretraining: PretrainingConfig | None = None
    kl: KLConfig = KLConfig()
    trainer: TrainerConfig
    weight_push: WeightPushConfig = WeightPushConfig()
    alarm: AlarmConfig = AlarmConfig()
    metrics: MetricsConfig = MetricsConfig()
    dashboard: DashboardConfig = DashboardConfig()
    trackers: TrackersConfig = TrackersConfig()
    cluster: ClusterConfig = ClusterConfig()
    deadlines: DeadlinesConfig = DeadlinesConfig()
    faults: FaultsConfig = FaultsConfig()

    @property
    def pushed_adapter_rank(self) -> int | None:
        """Rank of the adapters that a weight push consists of; None if it is all weights."""
        lora = self.learner.lora
        return lora.rank if lora is not None and self.weight_push.form == "adapters" else None

    @property
    def max_probe_gap(self) -> float:
        """Largest mean difference, in nats, between engine and learner on the probe after a push."""
        return self.weight_push.max_probe_gap or PROBE_GAPS[self.model.dtype]
