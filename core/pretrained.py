"""The door to model folders: a folder in; its config, its tokenizer or its network out.

A folder is data. Code that lies in it never runs, nor does transformers ask whether it may, and weights are
safetensors.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from core.errors import UserError
from core.packable import check_packable

TOKENIZER_FILE = "tokenizer.json"

hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()


def check_model(path: Path, *, max_model_len: int) -> None:
    """Raises `UserError` for a folder that is no model of transformers', that packing cannot do for sequences of up
    to `max_model_len` tokens by what its config says, or whose weights are not safetensors."""
    check_packable(path, read_config(path), max_model_len)
    _check_weights(path)


def read_config(path: Path) -> PreTrainedConfig:
    """What its config.json says. Raises `UserError`."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _refusal(path, "not a model that transformers can read", error) from error
    return config


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Raises `UserError`."""
    if (path / TOKENIZER_FILE).is_file():
        read_tokenizer_file(path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises nothing more precise
        raise _refusal(path, "its tokenizer does not load", error) from error
    return tokenizer


def read_tokenizer_file(path: Path) -> dict[str, Any]:
    """The content of the model's tokenizer.json. Raises `UserError`."""
    file = path / TOKENIZER_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file. Save the model's tokenizer beside its weights.") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}). Copy it again from where the model is from."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds no JSON object. Copy it again from where the model is from.")
    return content


def load_network(kind: type, path: Path, **options: Any) -> Any:
    """What `kind.from_pretrained` gives, such as that of `AutoModelForCausalLM`. Raises `UserError`."""
    _check_weights(path)
    try:
        return kind.from_pretrained(  # type: ignore[attr-defined]
            path, trust_remote_code=False, use_safetensors=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _refusal(path, "its weights do not load", error) from error


def _check_weights(path: Path) -> None:
    if not any(path.glob("*.safetensors")):
        others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
        raise UserError(
            f"{path}: no weights as safetensors{f', only {others[0]}' if others else ''}. Other formats may hold "
            "code and are not read; save the model with `save_pretrained`, which writes safetensors."
        )


def _refusal(path: Path, problem: str, error: Exception) -> UserError:
    if "trust_remote_code" in str(error):
        return UserError(
            f"{path}: this model needs code of its own, which Leash never runs. Use a model whose architecture "
            "transformers knows."
        )
    return UserError(f"{path}: {problem} ({error}).")
