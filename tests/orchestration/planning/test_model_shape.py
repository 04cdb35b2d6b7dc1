"""Numbers of a model from its config.json and from the headers of its weights."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from orchestration.planning.model_shape import (
    adapter_parameters,
    count_parameters,
    is_known,
    model_shape,
    shape_of,
    with_scalar_head,
)
from orchestration.planning.published_models import PUBLISHED, published_config

TINY = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 32,
    "tie_word_embeddings": True,
}
"""A layer: queries 8 x 8, keys and values 4 x 8 each, output 8 x 8, MLP 3 x 8 x 16, norms 2 x 8: 592."""


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [  # as counted by the Hugging Face Hub from the safetensors files of each model
        ("SmolLM2-135M", 134_515_008),
        ("SmolLM2-360M", 361_821_120),
        ("SmolLM2-1.7B", 1_711_376_384),
        ("Qwen2.5-0.5B", 494_032_768),
        ("Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen2.5-3B", 3_085_938_688),
        ("Qwen2.5-7B", 7_615_616_512),
        ("Qwen2.5-14B", 14_770_033_664),
        ("Qwen2.5-32B", 32_763_876_352),
        ("Qwen2.5-72B", 72_706_203_648),
        ("Qwen3-0.6B", 596_049_920),
        ("Qwen3-1.7B", 1_720_574_976),
        ("Qwen3-4B", 4_022_468_096),
        ("Qwen3-8B", 8_190_735_360),
        ("Qwen3-14B", 14_768_307_200),
        ("Qwen3-32B", 32_762_123_264),
        ("Llama-3.2-1B", 1_235_814_400),
        ("Llama-3.2-3B", 3_212_749_824),
        ("Llama-3.1-8B", 8_030_261_248),
        ("Llama-3.1-70B", 70_553_706_496),
    ],
)
def test_published_models_have_as_many_parameters_as_published(name: str, num_parameters: int) -> None:
    assert shape_of(PUBLISHED[name], source=name).num_parameters == num_parameters


def test_every_published_model_is_checked_above() -> None:
    assert len(PUBLISHED) == 20


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Qwen2.5-7B-Instruct", "Qwen2.5-7B"),
        ("qwen2.5-7b", "Qwen2.5-7B"),
        ("Meta-Llama-3.1-8B-Instruct", "Llama-3.1-8B"),
        ("Qwen3-4B-Instruct-2507", "Qwen3-4B"),
        ("smollm2-135m-instruct", "SmolLM2-135M"),
        ("Qwen2.5-Math-7B", None),
        ("Qwen2.5-14B-Instruct", "Qwen2.5-14B"),
        ("Qwen2.5-1B", None),
    ],
)
def test_a_name_stands_for_a_published_size(name: str, known: str | None) -> None:
    assert published_config(name) == (PUBLISHED[known] if known else None)


def test_a_tiny_model_is_counted_by_hand() -> None:
    shape = shape_of(TINY, source="tiny")
    assert shape.layer_parameters == 592
    assert shape.num_parameters == 32 * 8 + 2 * 592 + 8
    assert (shape.query_size, shape.kv_size, shape.num_kv_heads) == (8, 4, 1)
    untied = shape_of(TINY | {"tie_word_embeddings": False}, source="tiny")
    assert untied.num_parameters - shape.num_parameters == 32 * 8
    biased = shape_of(TINY | {"model_type": "qwen2"}, source="tiny")
    assert biased.num_parameters - shape.num_parameters == 2 * (8 + 4 + 4)


@pytest.mark.parametrize(
    ("name", "shards"),
    [("Qwen2.5-7B", [1, 2, 4]), ("Qwen2.5-0.5B", [1, 2, 14]), ("SmolLM2-135M", [1, 3, 9])],
)
def test_a_model_is_split_by_its_query_and_key_value_heads(name: str, shards: list[int]) -> None:
    shape = shape_of(PUBLISHED[name], source=name)
    assert [number for number in range(1, 17) if shape.can_split(number)] == shards


def test_the_docs_name_every_published_model() -> None:
    text = (Path(__file__).parents[3] / "docs" / "planning.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| (\S+) \| (\d.*B) \|", text)
    named = [f"{family}-{size}" for family, sizes in rows for size in sizes.split(", ")]
    assert sorted(named) == sorted(PUBLISHED)


def test_adapters_stand_beside_every_matrix_of_every_layer() -> None:
    # q and o: 8 + 8; k and v: 8 + 4; gate, up and down: 8 + 16; times rank 2 and two layers
    assert adapter_parameters(shape_of(TINY, source="tiny"), rank=2) == 2 * 2 * (2 * 16 + 2 * 12 + 3 * 24)


def test_a_reward_model_is_the_lowest_layers_with_a_head() -> None:
    scalar = with_scalar_head(shape_of(TINY, source="tiny"), num_layers=1)
    assert scalar.num_parameters == 32 * 8 + 592 + 8 + 8
    assert scalar.vocab_size == 0


def write_model(folder: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> Path:
    """A checkpoint with headers and no weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    header |= {name: {"dtype": "F32", "shape": shape} for name, shape in shapes.items()}
    data = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data)
    return folder


def test_the_weights_on_disk_are_counted_and_not_guessed(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", TINY, {"a": [3, 5], "b": [7], "scalar": []})
    assert count_parameters(folder / "model.safetensors") == 15 + 7 + 1
    assert model_shape(str(folder)).num_parameters == 23
    assert model_shape(str(folder)).source == str(folder)


def test_a_config_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert model_shape(str(tmp_path)).num_parameters == 1448


def test_a_hub_model_in_the_cache_is_read_at_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    revision = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--lab--tiny" / "snapshots" / revision
    write_model(folder, TINY, {"the first of several files": [3, 5]})
    assert model_shape("lab/tiny", revision).num_parameters == 1448
    assert model_shape("lab/tiny", revision).source == str(folder)
    assert is_known("lab/tiny", revision)
    assert not is_known("lab/tiny")
    with pytest.raises(
        UserError, match="lab/tiny: has no config.json, .*hf download lab/tiny --revision HASH"
    ):
        model_shape("lab/tiny")


def test_a_hub_name_is_found_by_its_last_part() -> None:
    assert model_shape("Qwen/Qwen2.5-7B-Instruct").num_parameters == 7_615_616_512
    assert model_shape("/recipes/Qwen/Qwen2.5-7B-Instruct").num_parameters == 7_615_616_512
    assert is_known("/recipes/Qwen/Qwen2.5-7B-Instruct")
    assert not is_known("/recipes/my-model")


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"n_embd": 8}, "has no 'hidden_size'"),
        (TINY | {"num_experts": 8}, "mixture of experts"),
    ],
)
def test_what_the_formulas_do_not_hold_for_is_refused(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        shape_of(config, source="x")


def test_an_unknown_model_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"my-model: has no config.json"):
        model_shape(str(tmp_path / "my-model"))
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(UserError, match="is no safetensors file"):
        count_parameters(tmp_path / "model.safetensors")
