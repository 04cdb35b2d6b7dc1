"""What of a model's config packing cannot do.

A packed row goes through the base model with causal attention over the whole of each sequence, and what comes out
through the head, as it is (`core/models.py`). A network that is more than that would get other log-probs than it
has. `core.models` compares the two for networks that nobody listed here.
"""

from pathlib import Path

from transformers import PreTrainedConfig

from core.errors import UserError

FULL, SLIDING = "full_attention", "sliding_attention"
"""Of transformers' names for kinds of layers those that packing can do, the second for short texts."""

OTHER_NETWORKS = {
    **dict.fromkeys(("bloom", "mpt"), "ALiBi"),
    **dict.fromkeys(("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"), "state-space layers"),
    **dict.fromkeys(("falcon_h1", "recurrent_gemma", "zaya"), "state-space layers beside attention"),
    **dict.fromkeys(
        ("codegen", "gptj", "nemotron", "stablelm"), "an attention that transformers cannot exchange"
    ),
    "gpt_oss": "attention sinks",
    "xglm": "positions that are counted in its own way",
}
"""Model type -> what is in it that packing cannot do, and that no other key of its config says."""

NEUTRAL = {
    "alibi": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "lm_head_multiplier": 1,
    "logit_scale": 1,
    "logits_scaling": 1,
}
"""Key -> the value with which it changes nothing, as None does too."""


def check_packable(path: Path, config: PreTrainedConfig, max_model_len: int) -> None:
    """`path` is the folder that the config is from. Raises `UserError`."""
    problem = _problem(config.get_text_config(), max_model_len)
    if problem:
        raise UserError(
            f"{path}/config.json: {problem}, so log-probs of packed rows would be wrong. Use a model with full "
            "attention in every layer and plain logits, such as a Llama, Qwen2 or Qwen3."
        )


def _problem(config: PreTrainedConfig, max_model_len: int) -> str | None:
    if config.model_type in OTHER_NETWORKS:
        return f"model_type = {config.model_type} has {OTHER_NETWORKS[config.model_type]}, which packing cannot do"
    for key, neutral in NEUTRAL.items():
        if (value := getattr(config, key, None)) not in (None, neutral):
            return f"{key} = {value}, which packing leaves out"
    kinds = getattr(config, "layer_types", None)
    if others := sorted(set(kinds or ()) - {FULL, SLIDING}):
        return f"layer_types has {others[0]}, which packing cannot do"
    window = getattr(config, "sliding_window", None)
    # Most say by layer which ones have the window; where none says so, all have it.
    has_window = SLIDING in kinds if kinds else bool(window) and getattr(config, "use_sliding_window", True)
    if has_window and not (window and window >= max_model_len):
        return (
            f"sliding_window = {window} is shorter than model.max_model_len = {max_model_len} (set at most "
            "the window), and packing attends to whole sequences"
        )
    return None
