"""A reward model's level, measured on texts of a policy that writes the same token over and over."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from core.models import SCORE_OFFSET, load_scalar_model
from core.packing import pack_row
from learner.reward_normalization import mean_score_of_samples
from tests.fakes import save_tiny_tokenizer

END, SAID = 1, 7
PROMPTS = [np.array([5, 6, 8], dtype=np.int32), np.array([9], dtype=np.int32)]


def config() -> LlamaConfig:
    one_output: dict[str, Any] = {"num_labels": 1}
    return LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        eos_token_id=END,
        pad_token_id=0,
        initializer_range=0.5,
        **one_output,
    )


@pytest.fixture
def reward_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    LlamaForSequenceClassification(config()).save_pretrained(tmp_path / "reward")
    save_tiny_tokenizer(tmp_path / "reward", "good", "bad")
    return tmp_path / "reward"


@pytest.mark.parametrize(("token", "written"), [(SAID, [SAID] * 4), (END, [])])
def test_the_mean_is_over_whole_texts_without_their_end(
    reward_folder: Path, monkeypatch: pytest.MonkeyPatch, token: int, written: list[int]
) -> None:
    policy: Any = LlamaForCausalLM(config()).eval()
    plain = policy.forward

    def stubborn(*arguments: Any, **options: Any) -> Any:
        """Whatever came before, it writes one token."""
        output = plain(*arguments, **options)
        output.logits = torch.where(torch.arange(20) == token, 100.0, 0.0).expand_as(output.logits).clone()
        return output

    policy.forward = stubborn
    monkeypatch.setattr(
        "learner.reward_normalization.AutoModelForCausalLM.from_pretrained", lambda *_, **__: policy
    )
    model = load_scalar_model(reward_folder, "float32").eval()
    mean = mean_score_of_samples(model, reward_folder, PROMPTS, max_new_tokens=4, token_budget=64, seed=0)
    with torch.no_grad():
        alone = [
            float(model.final_scores(pack_row([(ids, np.zeros(len(ids), dtype=bool))])))
            for ids in (np.array([*prompt, *written], dtype=np.int32) for prompt in PROMPTS)
        ]
    assert mean == pytest.approx(sum(alone) / 2, abs=1e-6)


def test_the_offset_in_the_config_is_taken_off_every_score(reward_folder: Path) -> None:
    row = pack_row([(np.array([5, 6, 8], dtype=np.int32), np.array([False, True, True]))])
    before = load_scalar_model(reward_folder, "float32")
    file = reward_folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {SCORE_OFFSET: 1.5}))
    after = load_scalar_model(reward_folder, "float32")
    with torch.no_grad():
        assert torch.allclose(after.final_scores(row), before.final_scores(row) - 1.5)
        assert torch.allclose(after(row), before(row) - 1.5)
