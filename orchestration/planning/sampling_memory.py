"""Memory of those that only read weights: rollout workers, reference scorers, reward models. In bytes."""

from collections.abc import Iterator

from actors.config import RolloutConfig
from actors.engine_options import PREFILL_TOKENS
from core.config import ModelConfig
from orchestration.planning.learner_memory import FLOAT32_BYTES, bytes_of
from orchestration.planning.model_shape import ModelShape

GIB = 2**30
SAMPLED_LOGIT_COPIES = 3
"""Of [sequences, V] in float32 while an engine samples: logits, probabilities, log-probs."""
SCORED_LOGIT_COPIES = 2
"""Of [N, V] in float32 while a reference scores: logits and log-probs."""
BLOCK_TOKENS = {True: 16, False: 128}
"""vLLM's default page of the key-value cache, on GPUs and on CPUs."""


def kv_bytes_per_token(shape: ModelShape, dtype: str, tensor_parallel: int = 1) -> int:
    """On one GPU: a key and a value a layer, of the key-value heads that the GPU has (at least one)."""
    kv_size = shape.kv_size // min(tensor_parallel, shape.num_kv_heads)
    return 2 * shape.num_layers * kv_size * bytes_of(dtype)


def sequences_in_cache(
    cache_bytes: int, shape: ModelShape, model: ModelConfig, rollout: RolloutConfig
) -> int:
    """Sequences of `max_model_len` tokens that the key-value cache of one engine (of one of its GPUs) holds."""
    block = BLOCK_TOKENS[rollout.resources.num_gpus > 0]
    tokens = -(-model.max_model_len // block) * block
    return cache_bytes // (tokens * kv_bytes_per_token(shape, model.dtype, rollout.tensor_parallel))


def engine_memory(shape: ModelShape, model: ModelConfig, rollout: RolloutConfig) -> Iterator[tuple[str, int]]:
    """(what, bytes) of one engine on one of its GPUs, without its key-value cache."""
    size, shards = bytes_of(model.dtype), rollout.tensor_parallel
    yield "weights", size * shape.num_parameters // shards
    if rollout.resources.num_gpus == 0:
        # vLLM keeps a packed copy of the output head (see `actors/weight_pull.py`).
        yield "packed output head", size * shape.vocab_size * shape.hidden_size
    yield (
        "activations and logits",
        (
            max(PREFILL_TOKENS, model.max_model_len) * forward_bytes_per_token(shape, model.dtype) // shards
            + FLOAT32_BYTES * SAMPLED_LOGIT_COPIES * shape.vocab_size * rollout.max_concurrent_sequences
        ),
    )


def scorer_memory(shape: ModelShape, model: ModelConfig, token_budget: int) -> Iterator[tuple[str, int]]:
    """(what, bytes) of one reference scorer or, if its shape has no vocabulary, of one reward server."""
    yield "weights", bytes_of(model.dtype) * shape.num_parameters
    logits = FLOAT32_BYTES * SCORED_LOGIT_COPIES * shape.vocab_size
    yield "activations and logits", token_budget * (forward_bytes_per_token(shape, model.dtype) + logits)


def forward_bytes_per_token(shape: ModelShape, dtype: str) -> int:
    """Of one layer at work; without gradients nothing of the layers below is kept."""
    inner = 3 * shape.intermediate_size + 2 * shape.query_size + 2 * shape.kv_size
    return bytes_of(dtype) * inner + 2 * FLOAT32_BYTES * shape.hidden_size
