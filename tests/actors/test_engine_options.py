"""What a vLLM engine is told, on a processor and on GPUs. vLLM is not started."""

from typing import Any

import pytest

from actors.config import RolloutConfig
from actors.engine_options import engine_environment, engine_options
from core.config import ModelConfig, Resources

MODEL = ModelConfig(path="unread", dtype="bfloat16", max_model_len=8192)


def rollout(num_gpus: float, **others: Any) -> RolloutConfig:
    return RolloutConfig(resources=Resources(num_gpus=num_gpus), **others)


def test_an_engine_over_two_gpus_of_its_own() -> None:
    config = rollout(2, tensor_parallel=2, gpu_memory_fraction=0.9, max_concurrent_sequences=256)
    assert engine_options(MODEL, config) == {
        "dtype": "bfloat16",
        "max_model_len": 8192,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.9,
        "kv_cache_memory_bytes": None,
        "enforce_eager": False,
        "enable_chunked_prefill": False,
        "logprobs_mode": "processed_logprobs",
    }
    assert engine_environment(config) == {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }


def test_on_a_shared_gpu_the_cache_does_not_depend_on_what_is_free_when_the_engine_starts() -> None:
    options = engine_options(MODEL, rollout(0.25, gpu_memory_fraction=0.25, kv_cache_gib=4))
    assert options["kv_cache_memory_bytes"] == 4 * 2**30
    assert options["gpu_memory_utilization"] == 0.25
    assert not options["enforce_eager"]


@pytest.mark.parametrize(("shards", "more"), [(1, {}), (2, {"VLLM_CPU_OMP_THREADS_BIND": "nobind"})])
def test_on_a_processor_nothing_is_compiled_and_the_cache_is_an_environment_variable(
    shards: int, more: dict[str, str]
) -> None:
    config = rollout(0, tensor_parallel=shards, kv_cache_gib=3)
    options = engine_options(ModelConfig(path="unread", max_model_len=256), config)
    assert (options["enforce_eager"], options["kv_cache_memory_bytes"]) == (True, None)
    assert (options["dtype"], options["max_num_batched_tokens"]) == ("float32", 4096)
    environment = engine_environment(config)
    assert {"VLLM_CPU_KVCACHE_SPACE": "3", "TORCHDYNAMO_DISABLE": "1"} | more == {
        key: environment[key] for key in ("VLLM_CPU_KVCACHE_SPACE", "TORCHDYNAMO_DISABLE", *more)
    }
    assert ("VLLM_CPU_OMP_THREADS_BIND" in environment) == bool(more)
