"""From a recipe to what each of its processes needs, by kind: the memory that they take, in named parts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from actors.config import RewardModelReward
from core.config import Resources
from learner.algorithm_config import (
    ActorCriticConfig,
    DPOConfig,
    REBELConfig,
    RPOConfig,
    SFTConfig,
)
from orchestration.planning.learner_memory import (
    LOGIT_COPIES,
    VOCABULARY_TERM_COPIES,
    Network,
    bytes_of,
    held_parameters,
    learner_host_memory,
    learner_memory,
    trained_parameters,
)
from orchestration.planning.model_shape import (
    ModelShape,
    adapter_parameters,
    is_known,
    model_shape,
    with_scalar_head,
)
from orchestration.planning.sampling_memory import (
    engine_memory,
    kv_bytes_per_token,
    scorer_memory,
    sequences_in_cache,
)
from orchestration.recipe.config import Recipe

MIB = 2**20
GIB = 2**30
LIBRARY_MIB = {"learner": 600, "rollout": 1250, "scorer": 310, "driver": 510, "ray": 400}
"""What a process takes on a CPU beside what is computed here: Python, torch and its kin, Ray. Measured on runs of
SmolLM2-135M on two cores, see docs/planning.md."""
CPU_ALLOCATOR_FRACTION = 0.5
"""Of activations: what malloc holds beyond what is in use, since freed memory is kept (`core/remote.py`). Measured
on the same runs."""
GPU_CONTEXT_MIB = 1024
"""CUDA context, cuBLAS workspaces and NCCL buffers of one process. An assumption: no GPU has been measured."""
CUDA_HOST_MIB = 2048
"""Of the host, for what CUDA, NCCL and pinned buffers take of it in a process on a GPU. An assumption, too."""
CUDA_GRAPHS_MIB = 1024
"""Of an engine on a GPU. An assumption, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What every process of one kind needs."""

    kind: str
    count: int
    resources: Resources
    parts: tuple[tuple[str, int], ...]
    """(what, bytes), on a GPU for those that have one; for an engine without its key-value cache."""
    host_bytes: int
    """In the host's memory, for those with a GPU; 0 for those without, whose parts are there."""

    @property
    def on_gpu(self) -> bool:
        return self.resources.num_gpus > 0

    @property
    def gpu_share(self) -> float:
        """Of each GPU that it uses: one process computes on one, or an engine on several whole ones."""
        return min(1.0, self.resources.num_gpus)

    @property
    def total_bytes(self) -> int:
        return sum(size for _, size in self.parts)


class Demands:
    """Everything that a recipe's processes need, and how much flows between them."""

    def __init__(self, recipe: Recipe) -> None:
        """Raises `UserError` for a model that cannot be planned."""
        self.recipe = recipe
        self.policy = model_shape(recipe.model.path, recipe.model.revision)
        self.notes: list[str] = []
        """What had to be assumed."""
        self._reward_models = {
            reward.name: self._reward_shape(reward)
            for reward in recipe.rewards
            if isinstance(reward, RewardModelReward)
        }

    @cached_property
    def by_kind(self) -> dict[str, Demand]:
        """Learner, rollout, reference (if there is one), and reward-NAME."""
        return {demand.kind: demand for demand in self._all()}

    @property
    def networks(self) -> list[Network]:
        """What the learner trains: the policy, and for PPO the value model."""
        recipe = self.recipe
        entropy = getattr(recipe.algorithm, "entropy_coef", 0.0) > 0
        extra = VOCABULARY_TERM_COPIES if entropy or recipe.kl.estimator == "exact" else 0
        networks = [Network(name="policy", shape=self.policy, logit_copies=LOGIT_COPIES + extra)]
        if isinstance(recipe.algorithm, ActorCriticConfig):
            networks.append(
                Network(name="value model", shape=self._value_shape(recipe.algorithm), logit_copies=0)
            )
        return networks

    def _value_shape(self, algorithm: ActorCriticConfig) -> ModelShape:
        if algorithm.value_init == "policy":
            return with_scalar_head(self.policy, self.policy.num_layers)
        models = [reward for reward in self.recipe.rewards if isinstance(reward, RewardModelReward)]
        largest = max(models, key=lambda reward: reward.weight)
        return self._reward_models[largest.name]

    @property
    def row_tokens(self) -> int:
        """Tokens of the largest packed row of a rank: the budget, or all of a mini-batch if that is less."""
        recipe = self.recipe
        longest = recipe.model.max_model_len
        texts = -(-_texts_per_update(recipe) // recipe.learner.world_size)
        return max(longest, min(recipe.learner.token_budget, texts * longest))

    @property
    def push_bytes(self) -> int:
        """Of one weight push: the whole policy or its adapters, in the shared memory of the learner's host."""
        rank = self.recipe.pushed_adapter_rank
        pushed = adapter_parameters(self.policy, rank) if rank else self.policy.num_parameters
        return bytes_of(self.recipe.model.dtype) * pushed

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint: weights, and master weights and AdamW's means of what is trained."""
        config, size = self.recipe.learner, bytes_of(self.recipe.model.dtype)
        has_master = size < 4 or config.zero_stage > 0
        return sum(
            size * held_parameters(network.shape, config)
            + (12 if has_master else 8) * trained_parameters(network.shape, config)
            for network in self.networks
        )

    @property
    def kv_bytes_per_token(self) -> int:
        """Of one sequence in the key-value cache, over all GPUs of an engine."""
        return kv_bytes_per_token(self.policy, self.recipe.model.dtype)

    def cache_bytes(self, gpu_bytes: int | None) -> int | None:
        """Room for keys and values, in one engine (on each of its GPUs); None if the GPU is not known."""
        demand, rollout = self.by_kind["rollout"], self.recipe.rollout
        if not demand.on_gpu or rollout.resources.shares_gpu:
            return rollout.kv_cache_gib * GIB
        if gpu_bytes is None:
            return None
        return max(0, int(rollout.gpu_memory_fraction * gpu_bytes) - demand.total_bytes)

    def cached_sequences(self, gpu_bytes: int | None) -> int | None:
        """Sequences of the greatest length that one engine's cache holds."""
        cache = self.cache_bytes(gpu_bytes)
        if cache is None:
            return None
        return sequences_in_cache(cache, self.policy, self.recipe.model, self.recipe.rollout)

    def resident_bytes(self, kind: str) -> int:
        """Of the host's memory, for one process of this kind; for an engine on a CPU with its cache."""
        demand = self.by_kind[kind]
        if demand.on_gpu:
            return demand.host_bytes
        cache_gib = self.recipe.rollout.kv_cache_gib if kind == "rollout" else 0
        return demand.total_bytes + cache_gib * GIB

    @property
    def ram_bytes(self) -> int:
        """On the host, if all processes are on one."""
        processes = sum(demand.count * self.resident_bytes(kind) for kind, demand in self.by_kind.items())
        return processes + self.push_bytes + (LIBRARY_MIB["driver"] + LIBRARY_MIB["ray"]) * MIB

    def _all(self) -> Iterator[Demand]:
        recipe, model = self.recipe, self.recipe.model
        learner = recipe.learner
        on_gpu = learner.resources.num_gpus > 0
        parts = list(learner_memory(self.networks, learner, model, self.row_tokens, on_gpu=on_gpu))
        if not on_gpu:
            parts.append(("allocator", int(CPU_ALLOCATOR_FRACTION * parts[-1][1])))
        demand = _demand("learner", learner.world_size, learner.resources, parts, library="learner")
        offloaded = learner_host_memory(self.networks, learner, model) if on_gpu else 0
        yield replace(demand, host_bytes=demand.host_bytes + offloaded)
        parts = list(engine_memory(self.policy, model, recipe.rollout))
        if recipe.rollout.resources.num_gpus:
            parts.append(("CUDA graphs", CUDA_GRAPHS_MIB * MIB))
        yield _demand("rollout", recipe.rollout.workers, recipe.rollout.resources, parts, library="rollout")
        if recipe.reference.num_scorers:
            scorer = recipe.reference
            parts = list(scorer_memory(self.policy, model, scorer.token_budget))
            yield _demand("reference", scorer.replicas, scorer.resources, parts, library="scorer")
        for reward in recipe.rewards:
            parts = []
            if isinstance(reward, RewardModelReward):
                parts = list(scorer_memory(self._reward_models[reward.name], model, reward.token_budget))
            yield _demand(f"reward-{reward.name}", reward.replicas, reward.resources, parts, library="scorer")

    def _reward_shape(self, reward: RewardModelReward) -> ModelShape:
        """Of a folder; of what this recipe would train; or, of one that is not on this disk, as the policy's."""
        if reward.path is None:
            assert self.recipe.reward_model is not None, "checked with the recipe"
            return with_scalar_head(self.policy, self.recipe.reward_model.num_layers)
        if is_known(reward.path, reward.revision):
            return replace(model_shape(reward.path, reward.revision), vocab_size=0)
        self.notes.append(f"{reward.path}: is not on this disk; taken to be as large as the policy")
        return with_scalar_head(self.policy, self.policy.num_layers)


def _texts_per_update(recipe: Recipe) -> int:
    """Texts that one optimizer step learns from, at most."""
    prompts = -(-recipe.trainer.prompts_per_step // recipe.algorithm.num_minibatches)
    group_size = 1 if recipe.datasets else recipe.rollout.group_size
    match recipe.algorithm:
        case DPOConfig() | RPOConfig() | REBELConfig():
            return 2 * prompts
        case SFTConfig(top_k=int(top_k), top_k_of="prompt"):
            return min(top_k, group_size) * prompts
        case _:
            return group_size * prompts


def _demand(
    kind: str, count: int, resources: Resources, parts: list[tuple[str, int]], *, library: str
) -> Demand:
    """With what every process takes: its libraries on the host, and on a GPU the context."""
    libraries = LIBRARY_MIB[library] * MIB
    on_gpu = resources.num_gpus > 0
    own = ("CUDA context", GPU_CONTEXT_MIB * MIB) if on_gpu else ("libraries", libraries)
    return Demand(
        kind=kind,
        count=count,
        resources=resources,
        parts=(*parts, own),
        host_bytes=libraries + CUDA_HOST_MIB * MIB if on_gpu else 0,
    )
