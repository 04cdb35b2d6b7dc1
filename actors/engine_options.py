"""How a vLLM engine is set up, on a processor, a GPU of its own, or one that it shares. Imports no vLLM."""

from typing import Any

from actors.config import RolloutConfig
from core.config import ModelConfig

GIB = 2**30
PREFILL_TOKENS = 4096
"""Tokens that an engine takes in one step, at least."""


def engine_options(model: ModelConfig, rollout: RolloutConfig) -> dict[str, Any]:
    """Arguments of vLLM's `EngineArgs`, but for where the model lies and how its weights come."""
    return {
        "dtype": model.dtype,
        "max_model_len": model.max_model_len,
        "max_num_seqs": rollout.max_concurrent_sequences,
        "max_num_batched_tokens": max(PREFILL_TOKENS, model.max_model_len),
        "tensor_parallel_size": rollout.tensor_parallel,
        "gpu_memory_utilization": rollout.gpu_memory_fraction,
        # Left to itself vLLM gives the cache what is free on the GPU while it starts. What others allocate there
        # meanwhile it takes for its own, and if they free some it gives up.
        "kv_cache_memory_bytes": rollout.kv_cache_gib * GIB if rollout.resources.shares_gpu else None,
        "enforce_eager": rollout.resources.num_gpus == 0,
        # Seeded requests crash vLLM's CPU sampler when their prompts are prefilled in chunks.
        "enable_chunked_prefill": False,
        # The distribution that was sampled from, so after temperature.
        "logprobs_mode": "processed_logprobs",
    }


def engine_environment(rollout: RolloutConfig) -> dict[str, str]:
    """vLLM's settings that are environment variables. One process, no compilation: see the design notes."""
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if rollout.resources.num_gpus == 0:
        environment |= {"VLLM_CPU_KVCACHE_SPACE": str(rollout.kv_cache_gib), "TORCHDYNAMO_DISABLE": "1"}
        if rollout.tensor_parallel > 1:  # vLLM would want a NUMA node for each shard
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return environment
