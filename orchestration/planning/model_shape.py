"""From a model's config.json and the headers of its weights to the numbers that memory follows from.

Reads no weights: a safetensors file says the shape of every tensor in its first bytes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.hub import HubModel, cached_folder, is_hub_name
from orchestration.assets import ASSET_PREFIX, cache_folder
from orchestration.planning.published_models import PUBLISHED, published_config

CONFIG = "config.json"
LENGTH_BYTES = 8
"""Of a safetensors header, little-endian, at the start of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder-only transformer with RMSNorm, gated MLP and grouped queries: Llama, Qwen and their kin."""

    num_parameters: int
    layer_parameters: int
    """Of each layer."""
    hidden_size: int
    num_layers: int
    query_size: int
    """Query heads times head size."""
    kv_size: int
    """Key-value heads times head size: less than `query_size` with grouped queries."""
    intermediate_size: int
    vocab_size: int
    """0 for a model with a scalar head, which has no logits."""
    num_heads: int
    """Of the queries."""
    num_kv_heads: int
    source: str
    """Where these numbers are from."""

    def can_split(self, shards: int) -> bool:
        """Whether an engine can spread it over so many GPUs: vLLM wants as many whole query heads on each, and
        as many whole key-value heads, or each of those on as many GPUs."""
        whole_kv_heads = self.num_kv_heads % shards == 0 or shards % self.num_kv_heads == 0
        return self.num_heads % shards == 0 and whole_kv_heads


@cache
def model_shape(path: str, revision: str | None = None) -> ModelShape:
    """Of a folder, `asset:NAME`, or a name on the Hub; of one that is not on this disk, if its name is a published
    model's. Asks no network.

    Raises `UserError` for anything else.
    """
    folder = _folder(path, revision)
    if (folder / CONFIG).is_file():
        # Of a model from the Hub part of the weights may still be missing.
        return shape_of(_read_config(folder), source=str(folder)) if is_hub_name(path) else read_shape(folder)
    name = Path(path).name
    config = published_config(name)
    if config is None:
        instead = (
            f"Fetch it first (hf download {path} --revision HASH) and add the revision beside it, or name a folder"
            if is_hub_name(path)
            else "Put the model's config.json there, or name the folder after one of these"
        )
        raise UserError(
            f"{path}: has no config.json, and its name is none of the published models that are known: "
            f"{', '.join(PUBLISHED)}. {instead}"
        )
    return shape_of(config, source=f"published config of {name}; {path} is not on this disk")


def is_known(path: str, revision: str | None = None) -> bool:
    """Whether `model_shape` can say anything about it."""
    is_here = (_folder(path, revision) / CONFIG).is_file()
    return is_here or published_config(Path(path).name) is not None


def read_shape(folder: Path) -> ModelShape:
    """Of a folder with a config.json. The parameters are counted in the weights' headers, where there are some."""
    config = _read_config(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        return shape_of(config, source=f"{folder / 'config.json'}; there are no weights beside it")
    num_parameters = sum(map(count_parameters, weights))
    return replace(shape_of(config, source=str(folder)), num_parameters=num_parameters)


def shape_of(config: Mapping[str, Any], *, source: str) -> ModelShape:
    """Of a config.json's content, the parameters counted by the architecture."""
    if "num_experts" in config or "num_local_experts" in config:
        raise UserError(f"{source}: is a mixture of experts, and only dense models can be planned")
    try:
        hidden_size, num_heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        num_kv_heads = int(config.get("num_key_value_heads", num_heads))
        head_dim = int(config.get("head_dim") or hidden_size // num_heads)
        shape = ModelShape(
            num_parameters=0,
            layer_parameters=0,
            hidden_size=hidden_size,
            num_layers=int(config["num_hidden_layers"]),
            query_size=num_heads * head_dim,
            kv_size=num_kv_heads * head_dim,
            intermediate_size=int(config["intermediate_size"]),
            vocab_size=int(config["vocab_size"]),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            source=source,
        )
    except KeyError as error:
        raise UserError(
            f"{source}: its configuration has no {error}; only Llama's kin can be planned"
        ) from None
    biases = config.get("attention_bias", config.get("model_type") == "qwen2")
    head_norms = config.get("model_type") == "qwen3"
    layer = 2 * hidden_size * (shape.query_size + shape.kv_size)
    layer += 3 * hidden_size * shape.intermediate_size + 2 * hidden_size
    layer += shape.query_size + 2 * shape.kv_size if biases else 0
    layer += 2 * head_dim if head_norms else 0
    embeddings = shape.vocab_size * hidden_size * (1 if config.get("tie_word_embeddings", False) else 2)
    num_parameters = embeddings + shape.num_layers * layer + hidden_size
    shape = replace(shape, num_parameters=num_parameters, layer_parameters=layer)
    is_scalar = any("SequenceClassification" in name for name in config.get("architectures") or [])
    return with_scalar_head(shape, shape.num_layers) if is_scalar else shape


def with_scalar_head(shape: ModelShape, num_layers: int) -> ModelShape:
    """The lowest layers of a model with a scalar head: what `leash reward` makes of it."""
    num_layers = min(num_layers, shape.num_layers)
    embeddings = shape.vocab_size * shape.hidden_size
    num_parameters = embeddings + num_layers * shape.layer_parameters + 2 * shape.hidden_size
    return replace(shape, num_parameters=num_parameters, num_layers=num_layers, vocab_size=0)


def adapter_parameters(shape: ModelShape, rank: int) -> int:
    """Of adapters beside every linear layer: rank * (inputs + outputs) each. arXiv:2106.09685, sec. 4.1."""
    hidden, query, kv, inner = shape.hidden_size, shape.query_size, shape.kv_size, shape.intermediate_size
    attention = 2 * (hidden + query) + 2 * (hidden + kv)
    return rank * shape.num_layers * (attention + 3 * (hidden + inner))


def count_parameters(file: Path) -> int:
    """Numbers in all tensors of a safetensors file, from its header."""
    try:
        with file.open("rb") as weights:
            header = json.loads(weights.read(int.from_bytes(weights.read(LENGTH_BYTES), "little")))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise UserError(f"{file}: is no safetensors file ({error}); download the model again") from error


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / 'config.json'}: cannot be read ({error}); download the model again"
        ) from error
    return config


def _folder(path: str, revision: str | None) -> Path:
    """Where it would be on this disk."""
    if is_hub_name(path):
        return cached_folder(HubModel(path, revision or "unknown"))
    name = path.removeprefix(ASSET_PREFIX)
    return cache_folder() / name if path.startswith(ASSET_PREFIX) else Path(path).expanduser()
