"""A reward model's level, measured on texts of a policy that writes the same token over and over."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from core.decoding import Decoding
from core.models import SCORE_OFFSET, ScalarModel, load_scalar_model
from core.packing import pack_row
from learner.reward_normalization import Sampling, mean_score_of_samples
from tests.fakes import save_tiny_tokenizer

END, GOOD, SAID = 1, 2, 7
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


def mean_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sampling: Sampling, *, token: int, logit: float
) -> tuple[ScalarModel, float]:
    """The reward model, and its mean on samples of a policy that finds one token likelier than all others, whatever
    came before it."""
    policy: Any = LlamaForCausalLM(config()).eval()
    plain = policy.forward

    def stubborn(*arguments: Any, **options: Any) -> Any:
        output = plain(*arguments, **options)
        output.logits = torch.where(torch.arange(20) == token, logit, 0.0).expand_as(output.logits).clone()
        return output

    policy.forward = stubborn
    # What the authors of a model suggest is not what rollout workers do.
    policy.generation_config = GenerationConfig(suppress_tokens=[token])
    monkeypatch.setattr(
        "learner.reward_normalization.AutoModelForCausalLM.from_pretrained", lambda *_, **__: policy
    )
    model = load_scalar_model(folder, "float32").eval()
    mean = mean_score_of_samples(model, folder, PROMPTS, sampling=sampling, token_budget=64, seed=0)
    return model, mean


def score_of(model: ScalarModel, written: list[int]) -> float:
    """The mean over the prompts with the same completion."""
    texts = [np.array([*prompt, *written], dtype=np.int32) for prompt in PROMPTS]
    with torch.no_grad():
        alone = [
            float(model.final_scores(pack_row([(ids, np.zeros(len(ids), dtype=bool))]))) for ids in texts
        ]
    return sum(alone) / 2


@pytest.mark.parametrize(("token", "written"), [(SAID, [SAID] * 4), (END, [])])
def test_the_mean_is_over_whole_texts_without_their_end(
    reward_folder: Path, monkeypatch: pytest.MonkeyPatch, token: int, written: list[int]
) -> None:
    model, mean = mean_of(reward_folder, monkeypatch, Sampling(max_new_tokens=4), token=token, logit=100.0)
    assert mean == pytest.approx(score_of(model, written), abs=1e-6)


@pytest.mark.parametrize(
    "decoding",
    [Decoding(temperature=0.01), Decoding(top_k=1), Decoding(top_p=0.05), Decoding(min_p=0.9), None],
)
def test_the_policy_is_sampled_as_rollout_workers_do(
    reward_folder: Path, monkeypatch: pytest.MonkeyPatch, decoding: Decoding | None
) -> None:
    """A token a little likelier than the others is all that is left; without decoding it is not."""
    how: dict[str, Any] = {"is_greedy": True} if decoding is None else {"decoding": decoding}
    sampling = Sampling(max_new_tokens=4, **how)
    model, mean = mean_of(reward_folder, monkeypatch, sampling, token=SAID, logit=0.5)
    expected = pytest.approx(score_of(model, [SAID] * 4), abs=1e-6)
    assert mean == expected
    _, undecoded = mean_of(reward_folder, monkeypatch, Sampling(max_new_tokens=4), token=SAID, logit=0.5)
    assert undecoded != expected


def test_a_text_that_ends_completions_ends_them_and_is_kept(
    reward_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(max_new_tokens=4, stop=["else", "good good"])
    model, mean = mean_of(reward_folder, monkeypatch, sampling, token=GOOD, logit=100.0)
    assert mean == pytest.approx(score_of(model, [GOOD, GOOD]), abs=1e-6)


def test_the_offset_in_the_config_is_taken_off_every_score(reward_folder: Path) -> None:
    row = pack_row([(np.array([5, 6, 8], dtype=np.int32), np.array([False, True, True]))])
    before = load_scalar_model(reward_folder, "float32")
    file = reward_folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {SCORE_OFFSET: 1.5}))
    after = load_scalar_model(reward_folder, "float32")
    with torch.no_grad():
        assert torch.allclose(after.final_scores(row), before.final_scores(row) - 1.5)
        assert torch.allclose(after(row), before(row) - 1.5)
