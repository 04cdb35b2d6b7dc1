"""Configurations of models that people train, for planning before a model is on disk.

The keys are those of the models' own config.json on the Hugging Face Hub.
"""

from typing import Any

_LLAMA = {"model_type": "llama", "vocab_size": 128256}
_QWEN2 = {"model_type": "qwen2", "vocab_size": 151936}
_QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "attention_bias": False}


def published_config(name: str) -> dict[str, Any] | None:
    """The configuration of a model, such as Qwen/Qwen2.5-7B-Instruct; variants of one size share it."""
    wanted = name.lower().removeprefix("meta-") + "-"
    return next(
        (config for known, config in PUBLISHED.items() if wanted.startswith(known.lower() + "-")), None
    )


def _config(
    family: dict[str, Any],
    hidden_size: int,
    layers: int,
    heads: tuple[int, int],
    intermediate_size: int,
    *,
    tied: bool,
    **others: int,
) -> dict[str, Any]:
    """`heads`: of the queries, and of the keys and values."""
    return family | {
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "intermediate_size": intermediate_size,
        "tie_word_embeddings": tied,
        **others,
    }


PUBLISHED = {
    "SmolLM2-135M": _config(_LLAMA, 576, 30, (9, 3), 1536, tied=True, vocab_size=49152),
    "SmolLM2-360M": _config(_LLAMA, 960, 32, (15, 5), 2560, tied=True, vocab_size=49152),
    "SmolLM2-1.7B": _config(_LLAMA, 2048, 24, (32, 32), 8192, tied=True, vocab_size=49152),
    "Qwen2.5-0.5B": _config(_QWEN2, 896, 24, (14, 2), 4864, tied=True),
    "Qwen2.5-1.5B": _config(_QWEN2, 1536, 28, (12, 2), 8960, tied=True),
    "Qwen2.5-3B": _config(_QWEN2, 2048, 36, (16, 2), 11008, tied=True),
    "Qwen2.5-7B": _config(_QWEN2, 3584, 28, (28, 4), 18944, tied=False, vocab_size=152064),
    "Qwen2.5-14B": _config(_QWEN2, 5120, 48, (40, 8), 13824, tied=False, vocab_size=152064),
    "Qwen2.5-32B": _config(_QWEN2, 5120, 64, (40, 8), 27648, tied=False, vocab_size=152064),
    "Qwen2.5-72B": _config(_QWEN2, 8192, 80, (64, 8), 29568, tied=False, vocab_size=152064),
    "Qwen3-0.6B": _config(_QWEN3, 1024, 28, (16, 8), 3072, tied=True),
    "Qwen3-1.7B": _config(_QWEN3, 2048, 28, (16, 8), 6144, tied=True),
    "Qwen3-4B": _config(_QWEN3, 2560, 36, (32, 8), 9728, tied=True),
    "Qwen3-8B": _config(_QWEN3, 4096, 36, (32, 8), 12288, tied=False),
    "Qwen3-14B": _config(_QWEN3, 5120, 40, (40, 8), 17408, tied=False),
    "Qwen3-32B": _config(_QWEN3, 5120, 64, (64, 8), 25600, tied=False),
    "Llama-3.2-1B": _config(_LLAMA, 2048, 16, (32, 8), 8192, tied=True),
    "Llama-3.2-3B": _config(_LLAMA, 3072, 28, (24, 8), 8192, tied=True),
    "Llama-3.1-8B": _config(_LLAMA, 4096, 32, (32, 8), 14336, tied=False),
    "Llama-3.1-70B": _config(_LLAMA, 8192, 80, (64, 8), 28672, tied=False),
}
"""Name of a size -> its configuration."""
