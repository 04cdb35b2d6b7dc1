"""Recipe tables of the actor side: prompts, rollout workers, reference scorers, rewards."""

from typing import Annotated, Literal

from pydantic import Field

from actors.autoscale_config import AutoscaleConfig
from core.config import MAX_SEED, Resources, Section

SEEDS_PER_GROUP = 1_000
"""Seeds set aside for the completions of one group, so that no two completions of a run share one."""


class MovieReviewPrompts(Section):
    """The first words of human-rated movie-review snippets, which the policy continues."""

    kind: Literal["movie-reviews"]
    first_words: int = Field(default=4, ge=1)
    """How many words of each snippet make the prompt."""
    split_seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the split into train, held-out and prompts; no snippet is in two of them."""


class JsonLines(Section):
    """Rows of one's own: a JSON-lines file with one object a line."""

    kind: Literal["jsonl"]
    path: str
    """The file. Relative paths start at the recipe's folder."""


class Parquet(Section):
    """Rows of one's own: a Parquet file."""

    kind: Literal["parquet"]
    path: str
    """The file. Relative paths start at the recipe's folder."""


class HuggingFace(Section):
    """A dataset that the `datasets` library finds: on the Hugging Face Hub, or in a folder."""

    kind: Literal["huggingface"]
    name: str = Field(min_length=1)
    """Name on the Hub, such as trl-lib/tldr, or a folder."""
    subset: str | None = None
    """The one of several subsets."""
    revision: str | None = None
    """Commit of a dataset on the Hub, which a run asks for, as in [model]."""
    split: str = "train"
    """Which split; slices such as train[:1000] are understood."""


class PromptColumn(Section):
    """Where prompts stand in rows of one's own, and how many are held out."""

    column: str = "prompt"
    """The column that holds the prompt, a text or a list of messages; the others are handed to reward functions."""
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the prompts kept for the comparison before and after, chosen by a hash of the text."""


class JsonLinesPrompts(PromptColumn, JsonLines):
    """Prompts of one's own: a JSON-lines file."""


class ParquetPrompts(PromptColumn, Parquet):
    """Prompts of one's own: a Parquet file."""


class HuggingFacePrompts(PromptColumn, HuggingFace):
    """Prompts that the `datasets` library finds."""


RowsConfig = JsonLines | Parquet | HuggingFace
PromptsConfig = Annotated[
    MovieReviewPrompts | JsonLinesPrompts | ParquetPrompts | HuggingFacePrompts, Field(discriminator="kind")
]


class WeighedSection(Section):
    """One of several datasets."""

    weight: float = Field(default=1.0, gt=0)
    """Its share of what is drawn, relative to the weights of the other datasets."""


class LearnedTexts(WeighedSection):
    """Texts that no policy of ours has sampled."""

    completion_only_loss: bool = True
    """For sft: learn completions alone, as is usual, or with false prompts as well, all but their first token."""
    heldout_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the prompts whose texts are not learned from; their perplexity is reported before and after."""


class MovieReviewDataset(LearnedTexts):
    """Human-rated movie-review snippets to learn from: texts that people liked, or comparisons."""

    kind: Literal["movie-reviews"]
    content: Literal["demonstrations", "comparisons"]
    """Single snippets, continued from their first words; or groups of snippets with their ratings."""
    first_words: int = Field(default=4, ge=1)
    """Of demonstrations: how many words make the prompt, which is not learned."""
    min_rating: float = Field(default=0.0, ge=-4, le=4)
    """Of demonstrations: only snippets whose mean rating is at least this."""
    group_size: int = Field(default=2, ge=2, le=9)
    """Of comparisons: snippets of a group."""
    shared_prompt: str = Field(default="Movie review:", min_length=1)
    """Of comparisons: what every snippet is taken to follow, since no two of them share their first words."""
    min_rating_difference: float = Field(default=1.0, gt=0)
    """Of comparisons: the best and the worst of a group are rated at least this far apart."""
    max_examples: int = Field(default=2000, ge=1)
    """Largest number of groups."""
    split_seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the split into train, held-out and prompts; no snippet is in two of them."""


class JsonLinesDataset(LearnedTexts, JsonLines):
    """Texts of one's own: JSON lines in TRL's formats, standard or conversational (see docs/datasets.md)."""


class ParquetDataset(LearnedTexts, Parquet):
    """Texts of one's own: a Parquet file in the same formats."""


class HuggingFaceDataset(LearnedTexts, HuggingFace):
    """Texts that the `datasets` library finds, in the same formats."""


class RunDataset(WeighedSection):
    """What an earlier run has sampled, with its rewards: on-policy preferences."""

    kind: Literal["run"]
    path: str
    """The run's folder. Relative paths start at the recipe's folder."""
    first_step: int = Field(default=1, ge=1)
    """Earliest step whose samples are used."""


DatasetConfig = Annotated[
    MovieReviewDataset | JsonLinesDataset | ParquetDataset | HuggingFaceDataset | RunDataset,
    Field(discriminator="kind"),
]


MAX_ADAPTER_RANK = 512
"""Of adapters that are pushed as such: the largest that vLLM takes."""


class RolloutConfig(Section):
    """Rollout workers: processes that sample completions with a vLLM engine."""

    workers: int = Field(default=1, ge=1)
    """Number of rollout workers, each with an engine of its own."""
    group_size: int = Field(default=4, ge=1)
    """Completions per prompt."""
    max_new_tokens: int = Field(default=24, ge=1)
    """Longest completion, in tokens."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature. The learner divides its logits by it, too, but where likelihood alone is learned (SFT,
    rejection sampling): below 1 the latter makes the policy surer of what it says with every step. 0 is greedy, for
    learning from datasets."""
    top_k: int | None = Field(default=None, ge=1)
    """Sample among the so many likeliest tokens, or among all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the likeliest tokens that together have this probability: nucleus sampling."""
    min_p: float = Field(default=0.0, ge=0, lt=1)
    """Sample among tokens at least this times as likely as the likeliest."""
    stop: list[str] = Field(default_factory=list)
    """Texts that end a completion, which keeps the tokens of the one it met."""
    max_resamples: int = Field(default=0, ge=0)
    """Times that a group is replaced by another prompt's if all its completions score the same."""
    max_concurrent_sequences: int = Field(default=64, ge=1)
    """Sequences that one engine decodes at a time."""
    kv_cache_gib: int = Field(default=1, ge=1)
    """Key-value cache of one engine in GiB, on a CPU or on a GPU that it shares (`resources.num_gpus` below 1)."""
    gpu_memory_fraction: float = Field(default=0.85, gt=0, le=1)
    """Share of a GPU's memory that one engine may take, its key-value cache included if the GPU is its own."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that one engine is spread over."""
    autoscale: AutoscaleConfig | None = None
    """Change the number of workers while the run goes on; left out: only `leash scale` does."""
    resources: Resources = Resources()
    """What each rollout worker asks of Ray."""


class FaultsConfig(Section):
    """What happens when a worker falls silent or dies. Whoever dies is replaced."""

    max_retries: int = Field(default=2, ge=0)
    """Times that work is given to another worker when one is lost on it."""
    on_lost_group: Literal["drop", "stop"] = "drop"
    """When a rollout group was lost with every worker that tried it: take another prompt, or end the run."""
    reward_retries: int = Field(default=0, ge=0)
    """Times that a completion is scored again when a reward function raises or returns no finite number."""
    on_reward_error: Literal["stop", "drop"] = "stop"
    """When it still does: end the run, or take another prompt in place of the whole rollout group."""
    max_restarts: int = Field(default=3, ge=0)
    """Failed starts in a row after which a worker is given up; the run ends when none of its kind is left."""
    heartbeat_s: float = Field(default=5, gt=0)
    """Seconds between two signs of life."""
    silence_s: float = Field(default=60, gt=0)
    """Seconds without an answer after which a worker gets nothing new, and after twice as many is replaced."""
    drain_s: float = Field(default=120, gt=0)
    """Seconds that a worker may take to finish before it leaves; the rest is done by others."""

    @property
    def patience_s(self) -> float:
        """Silence after which a worker is taken for dead."""
        return 2 * self.silence_s


class ReferenceConfig(Section):
    """Reference scorers: the frozen policy that the KL is measured against."""

    adapters_off: bool = False
    """No scorer of its own: the learner scores with its adapters switched off, which saves a model's memory."""
    replicas: int = Field(default=1, ge=1)
    """Number of reference scorers; requests go to the one with the fewest waiting."""
    token_budget: int = Field(default=1024, ge=1)
    """Tokens of one forward pass; what waits is batched up to this many."""
    resources: Resources = Resources()
    """What each reference scorer asks of Ray."""

    @property
    def num_scorers(self) -> int:
        """Processes that hold the reference."""
        return 0 if self.adapters_off else self.replicas


class RewardModelReward(Section):
    """A reward served by a scalar reward model."""

    kind: Literal["model"]
    name: str = Field(pattern="^[a-z][a-z0-9_]*$")
    """Name of this source in metrics and samples."""
    path: str | None = None
    """Folder of the reward model, or its name on the Hub; left out: what this recipe's [reward_model] trains."""
    revision: str | None = None
    """Commit of one on the Hub, as in [model]."""
    weight: float = 1.0
    """Weight in the score. 0 records the reward without training on it."""
    replicas: int = Field(default=1, ge=1)
    """Number of servers."""
    token_budget: int = Field(default=1024, ge=1)
    """Tokens of one forward pass."""
    resources: Resources = Resources()
    """What each server asks of Ray."""


class RewardFunctionReward(Section):
    """A reward computed by a Python function: `reward(prompts, completions, **columns) -> list[float]`."""

    kind: Literal["function"]
    name: str = Field(pattern="^[a-z][a-z0-9_]*$")
    """Name of this source in metrics and samples."""
    function: str = Field(pattern=r"^[\w.]+:\w+$")
    """The function, as `module:name`. It is trusted code."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Memory that the function may take in each process, its module included; left out: all there is. Beyond it
    the function gets a MemoryError, which `faults.on_reward_error` decides about, and its process is replaced."""
    weight: float = 1.0
    """Weight in the score. 0 records the reward without training on it."""
    replicas: int = Field(default=1, ge=1)
    """Number of processes that serve it."""
    resources: Resources = Resources(num_cpus=0.1, threads=1)
    """What each process asks of Ray."""


class RewardServerReward(Section):
    """A reward that `leash serve-reward` serves over HTTP, apart from the run."""

    kind: Literal["http"]
    name: str = Field(pattern="^[a-z][a-z0-9_]*$")
    """Name of this source in metrics and samples."""
    url: str = Field(pattern=r"^https?://[A-Za-z0-9.:_\[\]-]+(/[A-Za-z0-9./_~%-]*)?$")
    """Address of the server, such as http://10.0.0.7:8300."""
    token_env: str | None = None
    """Environment variable with the server's token, on every node that this reward's processes may run on."""
    token_file: str | None = None
    """File with the server's token, on every such node. Relative paths start at the recipe's folder."""
    timeout_s: float = Field(default=60, gt=0)
    """Seconds that the server may be silent before the request is sent again."""
    retries: int = Field(default=8, ge=0)
    """Times that a request is sent again when the server is away, full or late. 8 bridge half a minute."""
    weight: float = 1.0
    """Weight in the score. 0 records the reward without training on it."""
    replicas: int = Field(default=1, ge=1)
    """Number of client processes; each has one batch under way at a time."""
    resources: Resources = Resources(num_cpus=0.1, threads=1)
    """What each process asks of Ray."""


RewardConfig = Annotated[
    RewardModelReward | RewardFunctionReward | RewardServerReward, Field(discriminator="kind")
]
