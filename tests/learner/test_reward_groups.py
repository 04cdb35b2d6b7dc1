"""A reward model from groups of rated completions: what it learns from, and what is said of it held out.

Dimension key: S texts.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from core.errors import UserError
from core.messages import Demonstration, DemonstrationGroup, Prompt
from core.models import load_scalar_model
from core.packing import pack_row
from learner.config import RewardModelConfig
from learner.reward_groups import RatedGroups, group_metrics
from learner.reward_normalization import Sampling
from learner.reward_stage import train_reward_model
from tests.fakes import save_tiny_tokenizer

LIKED = 7
"""The token that people like: a completion is rated by how often it has it."""
END = 2


def group(number: int, completions: list[list[int]], ratings: list[float]) -> DemonstrationGroup:
    prompt = Prompt(prompt_id=str(number), text=str(number), token_ids=np.array([5, 6], dtype=np.int32))
    return DemonstrationGroup(
        group_id=str(number),
        demonstrations=tuple(
            Demonstration(
                prompt=prompt,
                token_ids_T=np.array([5, 6, *ids], dtype=np.int32),
                sampled_T=np.arange(2 + len(ids)) >= 2,
                text=" ".join(map(str, ids)),
                score=rating,
            )
            for ids, rating in zip(completions, ratings, strict=True)
        ),
    )


def planted(count: int, *, size: int, seed: int) -> list[DemonstrationGroup]:
    random = np.random.default_rng(seed)
    groups = []
    for number in range(count):
        texts = random.integers(8, 20, (size, 6))
        liked = random.permutation(6)[:size]
        for text, places in zip(texts, liked, strict=True):
            text[: int(places)] = LIKED
        groups.append(group(number, texts.tolist(), [float(places) for places in liked]))
    return groups


def rated_groups(train: list[DemonstrationGroup]) -> RatedGroups:
    heldout = planted(1, size=2, seed=1)
    return RatedGroups(RewardModelConfig(), train=train, heldout=heldout, special_ids={END}, report=print)


def make(folder: Path, **options: Any) -> tuple[RewardModelConfig, dict[str, float], list[str]]:
    model = folder / "policy"
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
            pad_token_id=0,
            eos_token_id=2,
            initializer_range=0.3,
        )
    ).save_pretrained(model)
    save_tiny_tokenizer(model, "good", "bad")
    config = RewardModelConfig(num_layers=1, token_budget=40, threads=1, **options)
    said: list[str] = []
    data = RatedGroups(
        config,
        train=planted(150, size=4, seed=0),
        heldout=planted(40, size=4, seed=1),
        special_ids={END},
        report=said.append,
    )
    (folder / "reward").mkdir()
    metrics = train_reward_model(
        config,
        data=data,
        model_path=model,
        folder=folder / "reward",
        report=said.append,
        prompts=[],
        sampling=Sampling(max_new_tokens=4),
    )
    return config, metrics, said


@pytest.mark.parametrize("loss", ["bradley-terry", "margin", "k-wise"])
def test_what_is_liked_is_learned_and_written(tmp_path: Path, loss: str) -> None:
    _, metrics, said = make(tmp_path, loss=loss)
    assert said == ["150 groups of rated completions to learn from, 40 held out"]
    assert metrics["pairwise_accuracy_0"] > 0.65
    assert metrics["pairwise_accuracy_2"] > metrics["pairwise_accuracy_0"]
    assert json.loads((tmp_path / "reward" / "metrics.json").read_text()) == metrics
    model = load_scalar_model(tmp_path / "reward", "float32").eval()
    texts = [[5, 6, *[LIKED] * 6], [5, 6, 9, 12, 8, 15, 10, 11]]
    row = pack_row([(np.array(text, dtype=np.int32), np.zeros(8, dtype=bool)) for text in texts])
    liked, other = model.final_scores(row).tolist()
    assert liked > other


def test_likelihood_counts_behind_the_prompt() -> None:
    data = rated_groups(planted(2, size=2, seed=0))
    texts = data.ranked_texts(Path())
    assert list(texts.starts) == [2] * 4
    assert texts.rankings.members_RK.max() == 3


def test_learned_from_is_what_will_be_scored() -> None:
    """The end of text that a dataset adds is no part of it; a special token in the middle is."""
    data = rated_groups([group(0, [[9, END, 8, END, END], [9, 8], [END]], [1.0, 0.0, -1.0])])
    learned_from = [ids.tolist() for ids in data.ranked_texts(Path()).token_ids]
    assert learned_from == [[5, 6, 9, END, 8], [5, 6, 9, 8], [5, 6]]


def test_heldout_figures_by_hand() -> None:
    # Group 1: ratings 0, 2, 1 and scores 0, ln 3, 2: pairs (1,0) right, 2 apart; (2,0) right, 1; (1,2) wrong, 1
    # Group 2: ratings 1, 0 and scores -1, -1: a tie of the scores is not right
    scores_S = torch.tensor([0.0, math.log(3), 2.0, -1.0, -1.0])
    metrics = group_metrics(scores_S, torch.tensor([0.0, 2.0, 1.0, 1.0, 0.0]), [3, 2])
    assert metrics["pairwise_accuracy_0"] == pytest.approx(2 / 4)
    assert metrics["pairwise_accuracy_1"] == pytest.approx(2 / 4)
    assert metrics["pairwise_accuracy_2"] == pytest.approx(1)
    assert metrics["score_mean"] == pytest.approx(math.log(3) / 5)


def test_a_margin_that_no_pair_has_is_left_out() -> None:
    metrics = group_metrics(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0]), [2])
    assert "pairwise_accuracy_1" in metrics
    assert "pairwise_accuracy_2" not in metrics
    # sigmoid(1) = 0.731 for the pair, 0.269 the other way round: both are 0.269 off
    assert metrics["calibration_error"] == pytest.approx(0.268941, abs=1e-5)


def test_too_little_to_learn_from_is_refused() -> None:
    with pytest.raises(UserError, match="give at least 2"):
        rated_groups([])
