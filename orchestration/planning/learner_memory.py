"""Memory of one learner rank: what it holds all the time, and what backward pass and update add for a while.

Follows `learner/engine.py` and the DeepSpeed that it configures; docs/planning.md derives every term.

    P parameters, T of them trained, N ranks, b bytes of a number in the model's dtype

Everything is in bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from core.config import ModelConfig
from learner.config import LearnerConfig
from orchestration.planning.model_shape import ModelShape, adapter_parameters

FLOAT32_BYTES = 4
ADAM_BYTES = 2 * FLOAT32_BYTES
"""AdamW's two means of a trained number."""
BUCKET_PARAMETERS = 500_000_000
"""DeepSpeed's default for the buffer that gradients are summed over ranks in."""
GATHERED_PARAMETERS = 1_000_000_000
"""DeepSpeed's default for the parameters that ZeRO-3 holds whole at a time, and for those updated at a time."""
LOGIT_COPIES = 3
"""Of [N, V] in float32 when the backward pass enters them: log-probs, their gradient, the logits' gradient."""
VOCABULARY_TERM_COPIES = 3
"""More of them, for an exact KL or an entropy: the logits, their second gradient, the reference's logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One network that the learner trains."""

    name: str
    shape: ModelShape
    logit_copies: int
    """0 for a value model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """What one network's ZeRO engine holds all the time, and holds for a while, on one rank."""

    weights: int
    gradients: int
    optimizer: int
    """Master weights, where there are some, and AdamW's means."""
    buckets: int
    """During the backward pass."""
    update: int
    """During the update."""
    host: int = 0
    """What is offloaded: in the host's memory instead of the GPU's."""


def bytes_of(dtype: str) -> int:
    """Of one number."""
    return 2 if dtype == "bfloat16" else FLOAT32_BYTES


def trained_parameters(shape: ModelShape, config: LearnerConfig) -> int:
    """All, or with adapters theirs alone (and a scalar head)."""
    if config.lora is None:
        return shape.num_parameters
    head = 0 if shape.vocab_size else shape.hidden_size
    return adapter_parameters(shape, config.lora.rank) + head


def held_parameters(shape: ModelShape, config: LearnerConfig) -> int:
    """All, adapters included."""
    return shape.num_parameters + (adapter_parameters(shape, config.lora.rank) if config.lora else 0)


def states(shape: ModelShape, config: LearnerConfig, dtype: str, *, on_gpu: bool) -> States:
    """ZeRO's model states on one rank (arXiv:1910.02054, sec. 3.1 and 5), as DeepSpeed lays them out."""
    on_device = _states_on_device(shape, config, dtype, on_gpu=on_gpu)
    return on_device if config.offload == "none" else _offloaded(on_device, shape, config, dtype)


def _states_on_device(shape: ModelShape, config: LearnerConfig, dtype: str, *, on_gpu: bool) -> States:
    held, trained = held_parameters(shape, config), trained_parameters(shape, config)
    size, ranks, stage = bytes_of(dtype), config.world_size, config.zero_stage
    sharded = -(-trained // ranks)
    is_mixed = size < FLOAT32_BYTES
    if stage == 0:
        return States(
            weights=size * held,
            gradients=size * trained,
            optimizer=(ADAM_BYTES + (FLOAT32_BYTES if is_mixed else 0)) * trained,
            buckets=size * min(trained, BUCKET_PARAMETERS) if ranks > 1 else 0,
            update=FLOAT32_BYTES * trained if is_mixed else 0,
        )
    # Allocated whole, but a CPU's memory counts when it is first touched.
    bucket = BUCKET_PARAMETERS if on_gpu else min(trained, BUCKET_PARAMETERS)
    held_sharded = -(-held // ranks)
    updated = min(sharded, GATHERED_PARAMETERS) if stage == 3 else sharded
    return States(
        weights=size * (held_sharded if stage == 3 else held),
        gradients=size * trained if stage == 1 else FLOAT32_BYTES * sharded,
        optimizer=(ADAM_BYTES + FLOAT32_BYTES) * sharded,
        buckets=size * (bucket + (min(held, GATHERED_PARAMETERS) if stage == 3 else 0)),
        update=(FLOAT32_BYTES + (size if is_mixed else 0)) * updated,
    )


def _offloaded(on_device: States, shape: ModelShape, config: LearnerConfig, dtype: str) -> States:
    """With ZeRO-Offload (arXiv:2101.06840, sec. 4): the CPU updates, so master weights, AdamW's means and
    gradients, in float32 and as they are summed over micro-batches, are in the host's memory. Stages 1 and 2 keep
    new weights there before they are copied back, and on each side the gradient of the largest parameter."""
    size, stage = bytes_of(dtype), config.zero_stage
    sharded = -(-trained_parameters(shape, config) // config.world_size)
    largest = 0 if config.lora else max(shape.vocab_size, shape.intermediate_size) * shape.hidden_size
    one_gradient = size * largest if stage < 3 else 0
    summed = size if stage == 1 else FLOAT32_BYTES
    host = on_device.optimizer + (FLOAT32_BYTES + summed) * sharded
    if stage < 3:
        host += size * sharded + one_gradient
    weights = on_device.weights
    if config.offload == "parameters":
        weights, host = 0, host + weights
    return replace(
        on_device,
        weights=weights,
        gradients=on_device.gradients if stage == 1 else 0,
        optimizer=0,
        buckets=on_device.buckets + one_gradient,
        update=0,
        host=host,
    )


def layer_activation_bytes(shape: ModelShape, dtype: str, *, adapters: bool) -> int:
    """Of one token in one layer: what the backward pass needs.

    The counterpart for RMSNorm, gated MLP and attention without its matrix of arXiv:2205.05198, eq. 2.
    """
    size = bytes_of(dtype)
    # Norms are computed in float32; their weight's gradient needs the normalised input.
    norm = FLOAT32_BYTES + size + (0 if adapters else size)
    attention = 3 * shape.query_size + 2 * shape.kv_size
    return 2 * norm * shape.hidden_size + size * (attention + 4 * shape.intermediate_size)


def activation_bytes(shape: ModelShape, config: LearnerConfig, dtype: str, num_tokens: int) -> int:
    """Of a packed row, at the start of the backward pass, with one layer's gradients on top."""
    layer = layer_activation_bytes(shape, dtype, adapters=config.lora is not None)
    if config.gradient_checkpointing:
        return num_tokens * (2 * layer + bytes_of(dtype) * shape.hidden_size * shape.num_layers)
    return num_tokens * layer * (shape.num_layers + 1)


def logit_bytes(network: Network, num_tokens: int) -> int:
    """Of a row whose every token is trained on. They are computed all at once, in float32 (`core/models.py`)."""
    return FLOAT32_BYTES * network.logit_copies * network.shape.vocab_size * num_tokens


def learner_memory(
    networks: list[Network], config: LearnerConfig, model: ModelConfig, num_tokens: int, *, on_gpu: bool
) -> Iterator[tuple[str, int]]:
    """(what, bytes) of one rank. Only the larger of backward pass and update counts: they take turns. Loading takes
    less: under ZeRO-3 weights are sharded as they are read, one module at a time."""
    dtype = model.dtype
    passing: dict[str, int] = {}
    for network in networks:
        held = states(network.shape, config, dtype, on_gpu=on_gpu)
        yield f"{network.name} weights", held.weights
        yield f"{network.name} gradients", held.gradients
        yield f"{network.name} optimizer state", held.optimizer
        if held.host and not on_gpu:
            yield f"{network.name} offloaded state", held.host
        rows = activation_bytes(network.shape, config, dtype, num_tokens) + logit_bytes(network, num_tokens)
        passing[f"{network.name} activations and logits"] = rows + held.buckets
        passing[f"{network.name} update"] = held.update
    what = max(passing, key=lambda name: passing[name])
    yield what, passing[what]


def learner_host_memory(networks: list[Network], config: LearnerConfig, model: ModelConfig) -> int:
    """Bytes that one rank with a GPU keeps in the host's memory."""
    return sum(states(network.shape, config, model.dtype, on_gpu=True).host for network in networks)
