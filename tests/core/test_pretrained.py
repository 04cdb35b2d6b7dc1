"""Folders of models that people got from elsewhere: no code in them runs, and what is damaged is named."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from core.errors import UserError
from core.models import check_same_tokenizer, load_policy
from core.pretrained import check_model, load_network, load_tokenizer, read_config
from tests.fakes import save_tiny_tokenizer

CODE = """
from pathlib import Path
Path({ran!r}).touch()
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
class OwnConfig(PreTrainedConfig):
    model_type = "own"
class OwnTokenizer(PreTrainedTokenizerFast): ...
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model with its tokenizer."""
    folder = tmp_path / "model"
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    ).save_pretrained(folder)
    save_tiny_tokenizer(folder, "good", "bad")
    return folder


def change(file: Path, **entries: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | entries), encoding="utf-8")


def bring_code(folder: Path) -> Path:
    """The model's config and tokenizer need code that lies beside them. The file that is there once it ran."""
    ran = folder.parent / "ran"
    (folder / "own.py").write_text(CODE.format(ran=str(ran)), encoding="utf-8")
    change(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]},
    )
    return ran


@pytest.mark.parametrize(
    "load",
    [
        read_config,
        lambda folder: check_model(folder, max_model_len=8),
        load_tokenizer,
        lambda folder: load_network(AutoModelForCausalLM, folder),
        lambda folder: load_policy(folder, "float32"),
    ],
)
def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    load: Callable[[Path], object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran = bring_code(folder)
    answers = io.StringIO("y\ny\ny\n")
    monkeypatch.setattr("sys.stdin", answers)
    with pytest.raises(UserError, match=r"model: this model needs code of its own, which Leash never runs"):
        load(folder)
    assert not ran.exists()
    assert answers.tell() == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: check_model(folder, max_model_len=8),
        lambda folder: load_policy(folder, "float32"),
    ],
)
def test_weights_that_are_not_safetensors_are_refused(folder: Path, load: Callable[[Path], object]) -> None:
    load(folder)
    weights = LlamaForCausalLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model: no weights as safetensors, only pytorch_model\.bin"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"model: no weights as safetensors\. "):
        load(folder)


@pytest.mark.parametrize("content", ['{"model": {', "[]", '{"model": {"type": "Unheard"}}', '{"version": 1}'])
def test_a_damaged_tokenizer_is_named(folder: Path, content: str) -> None:
    load_tokenizer(folder)
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="model.*tokenizer"):
        load_tokenizer(folder)


def test_damaged_tokenizers_are_not_compared(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text('{"model": {', encoding="utf-8")
    with pytest.raises(UserError, match=r"other/tokenizer\.json: cannot be read"):
        check_same_tokenizer(folder, other)
