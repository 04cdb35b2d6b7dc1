"""A tiny reward model whose backbone is trained too, on DeepSpeed, in a process of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core.errors import UserError
from core.models import load_scalar_model
from core.packing import pack_row
from learner.config import RewardModelConfig
from learner.rankings import RankedTexts, draw, within_groups
from learner.reward_tuning import ScoresAndLogprobs, tune_on_ranks
from tests.tiny_models import build_tiny_scalar_model

pytestmark = pytest.mark.real

VOCABULARY, LIKED, DISLIKED = 60, 11, 12
DEADLINE_S = 300
PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np, torch
from learner.config import RewardModelConfig
from learner.process_group import join_group, leave_group
from learner.rankings import RankedTexts, draw
from learner.reward_tuning import tune
join_group(rank=0, world_size=1, address="127.0.0.1", port=int(sys.argv[1]), deadline_s=60)
for folder, config in json.loads(sys.argv[2]):
    content = np.load(Path(folder) / "texts.npz")
    config, ratings_S = RewardModelConfig(**config), torch.from_numpy(content["ratings"])
    texts = RankedTexts(
        token_ids=list(content["texts"]), starts=[1] * 200, ratings_S=ratings_S, rankings=draw(ratings_S, config)
    )
    figures = tune(Path(folder), texts, config)
    (Path(folder) / "figures.json").write_text(json.dumps(figures))
leave_group()
"""
THREE_STEPS: dict[str, Any] = {
    "token_budget": 20,  # a row holds one pair, so of the 5 of a step one rank has a row more than the other
    "tuning": {"steps": 3, "rankings_per_step": 5, "nll_coef": 0.3},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "adapters": {},
    "all-weights": {"tuning": {"lora": None, "learning_rate": 2e-3}},
    "margin": {"loss": "margin"},
    "k-wise": {"loss": "k-wise", "tuning": {"rankings_per_step": 4}},
    "likelihood": {"tuning": {"nll_coef": 0.3}},
}


def planted(count: int, *, seed: int) -> tuple[Any, Any]:
    """Random texts; what people like about one is how often it says one word rather than another."""
    random = np.random.default_rng(seed)
    texts = random.integers(13, VOCABULARY, (count, 9)).astype(np.int32)
    liked = random.integers(0, 5, count)
    for text, number in zip(texts, liked, strict=True):
        places = random.permutation(8)[:4]
        text[places[:number]] = LIKED
        text[places[number:]] = DISLIKED
    return texts, liked.astype(np.float32)


def ranked(config: RewardModelConfig) -> RankedTexts:
    """What `prepare` writes, compared."""
    texts, ratings = planted(200, seed=0)
    ratings_S = torch.from_numpy(ratings)
    return RankedTexts(
        token_ids=list(texts), starts=[1] * 200, ratings_S=ratings_S, rankings=draw(ratings_S, config)
    )


def prepare(folder: Path, keys: dict[str, Any]) -> dict[str, Any]:
    """A reward model to tune and its texts in a folder, and the configuration."""
    build_tiny_scalar_model(folder, vocabulary=VOCABULARY)
    texts, ratings = planted(200, seed=0)
    np.savez(folder / "texts.npz", texts=texts, ratings=ratings)
    tuning = {"steps": 40, "rankings_per_step": 8, "learning_rate": 5e-3} | keys.get("tuning", {})
    return {"num_pairs": 4000, "min_rating_difference": 1.0} | keys | {"tuning": tuning}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all variants, trained one after another in one process."""
    root = tmp_path_factory.mktemp("tuned")
    variants = VARIANTS | {"one-rank": THREE_STEPS}
    jobs = [(str(root / name), prepare(root / name, keys)) for name, keys in variants.items()]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, port, json.dumps(jobs)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return root


def test_two_ranks_learn_what_one_learns(tuned: Path) -> None:
    """Of rankings that they share unevenly, in rows of which one rank has fewer."""
    folder, environment = tuned / "two-ranks", dict(os.environ)
    config = prepare(folder, {**THREE_STEPS, "tuning": THREE_STEPS["tuning"] | {"world_size": 2}})
    said: list[str] = []
    figures = tune_on_ranks(
        folder, ranked(RewardModelConfig(**config)), RewardModelConfig(**config), report=said.append
    )
    assert os.environ == environment
    assert said == [
        f"backbone: 3 steps on 2 ranks, loss {figures['tuning_loss_first']:.3f} -> "
        f"{figures['tuning_loss_last']:.3f}"
    ]
    alone = json.loads((tuned / "one-rank" / "figures.json").read_text(encoding="utf-8"))
    assert figures == pytest.approx(alone, rel=1e-5)
    prepare(tuned / "untrained", THREE_STEPS)
    before, one, two = (
        load_file(tuned / name / "model.safetensors") for name in ("untrained", "one-rank", "two-ranks")
    )
    moved = 0
    for name, weight in one.items():
        assert (two[name] - weight).abs().max() < 1e-5, name
        moved += bool((weight - before[name]).abs().max() > 5e-3)
    assert moved == 2 * 7 + 1, "every linear layer of both, and the head, by far more than that"


def test_a_rank_that_fails_says_why(tmp_path: Path) -> None:
    config = RewardModelConfig(**prepare(tmp_path, {"tuning": {"world_size": 2}}))
    with pytest.raises(UserError, match="not a model that transformers can read"):
        tune_on_ranks(tmp_path / "missing", ranked(config), config, report=print)


def test_a_ranking_of_fewer_texts_is_learned_from_as_it_is(tmp_path: Path) -> None:
    """Groups of four and of five, side by side in a row, and a prompt whose likelihood does not count."""
    config = RewardModelConfig(
        **prepare(tmp_path, {"loss": "k-wise", "tuning": {"rankings_per_step": 4, "nll_coef": 0.1}})
    )
    texts, ratings = planted(198, seed=0)
    ratings_S = torch.from_numpy(ratings)
    groups = RankedTexts(
        token_ids=list(texts),
        starts=[2] * 198,
        ratings_S=ratings_S,
        rankings=within_groups(ratings_S, [4, 5] * 22, config),
    )
    figures = tune_on_ranks(tmp_path, groups, config, report=print)
    assert figures["tuning_loss_last"] < 0.9 * figures["tuning_loss_first"]
    assert accuracy(tmp_path) > 0.8


@torch.no_grad()
def accuracy(folder: Path) -> float:
    """On texts that nothing was learned from: share of the pairs in the right order."""
    model = load_scalar_model(folder, "float32").eval()
    texts, ratings = planted(60, seed=1)
    row = pack_row([(text, np.zeros(len(text), dtype=bool)) for text in texts])
    scores = model.final_scores(row).numpy()
    better = ratings[:, None] > ratings[None, :]
    return float((scores[:, None] > scores[None, :])[better].mean())


@pytest.mark.parametrize("name", VARIANTS)
def test_the_order_is_learned_and_written_back(tuned: Path, name: str) -> None:
    figures = json.loads((tuned / name / "figures.json").read_text(encoding="utf-8"))
    assert figures["tuning_loss_last"] < 0.7 * figures["tuning_loss_first"]
    assert accuracy(tuned / name) > 0.8


def test_a_margin_asks_for_more_from_the_first_step_on(tuned: Path) -> None:
    first = {
        name: json.loads((tuned / name / "figures.json").read_text(encoding="utf-8"))["tuning_loss_first"]
        for name in ("adapters", "margin")
    }
    assert first["margin"] > first["adapters"] + 0.1


@torch.no_grad()
def log_likelihood(folder: Path) -> float:
    """Nats a token of texts that people like most."""
    texts, ratings = planted(60, seed=1)
    model = ScoresAndLogprobs(load_scalar_model(folder, "float32").model).eval()
    _, logprobs_N = model(pack_row([(text, np.arange(9) > 0) for text in texts[ratings == 4]]))
    return float(logprobs_N.mean())


def test_the_likelihood_term_keeps_preferred_texts_likely(tuned: Path) -> None:
    assert log_likelihood(tuned / "likelihood") > log_likelihood(tuned / "adapters") + 0.3
