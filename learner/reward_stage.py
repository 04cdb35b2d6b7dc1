"""A reward model from human ratings: a frozen, truncated backbone and a scalar head learned from pairs.

    rated snippets -> hidden states (once) -> preference pairs -> Bradley-Terry -> head

The backbone is the policy's own model, cut after `num_layers`: its middle layers tell liking better than
its last ones, and a shorter model serves faster. With the backbone frozen the loss is convex in the head,
so L-BFGS solves it to the end in seconds.

People rated whole snippets, but completions stop at `max_new_tokens`. A head that has only seen last tokens
of whole snippets reads much into whatever token a cut text happens to end with, so it learns from cut
snippets as well (as the token-level verifiers of arXiv:2110.14168, section 4.2). One forward pass gives the
features of a snippet and of all its cuts.

Dimension key: S texts (snippets, then cut snippets), F features (hidden size), P preference pairs.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from core.errors import UserError
from core.models import hidden_states, load_scalar_model
from core.packing import pack_row, plan_rows
from core.ratings import SPLIT_FRACTIONS, RatedText, load_ratings, split_ratings
from learner.config import RewardModelConfig
from learner.losses import bradley_terry_loss

DRAWS_PER_PAIR = 4
"""Random pairs drawn for each one wanted: about half are in the wrong order, some are too close."""
MIN_CUT_TOKENS = 8
"""A snippet is cut after this many tokens or later; fewer say little."""
MAX_ITERATIONS = 100
"""Of L-BFGS; it converges in fewer."""
MARGINS = (0.0, 1.0, 2.0)
"""Held-out accuracy is reported on pairs whose mean ratings differ by at least these."""


def train_reward_model(
    config: RewardModelConfig,
    *,
    model_path: Path,
    data_folder: Path,
    folder: Path,
    report: Callable[[str], None],
) -> dict[str, float]:
    """Write the reward model, an ordinary sequence classifier, into `folder`; its held-out figures."""
    started = time.perf_counter()
    torch.set_num_threads(config.threads)
    rows, malformed = load_ratings(data_folder)
    split = split_ratings(rows, seed=config.split_seed, fractions=SPLIT_FRACTIONS)
    train, heldout = split["train"][: config.train_snippets], split["heldout"][: config.heldout_snippets]
    report(
        f"{len(rows)} rated snippets ({len(malformed)} malformed lines left out): "
        f"{len(train)} to learn from, {len(heldout)} held out"
    )
    _write_backbone(model_path, folder, num_layers=config.num_layers)
    train_SF, train_ratings_S, _ = _features(folder, train, config.cut_copies, config, report)
    heldout_SF, heldout_ratings_S, is_cut_S = _features(folder, heldout, 1, config, report)
    head_F = _fit_head(train_SF, train_ratings_S, config)
    _write_head(folder, head_F)
    scores_S = heldout_SF @ head_F
    metrics = {
        f"{name}_{margin:g}": pairwise_accuracy(scores_S[of_S], heldout_ratings_S[of_S], margin)
        for name, of_S in (("pairwise_accuracy", ~is_cut_S), ("pairwise_accuracy_cut", is_cut_S))
        for margin in MARGINS
    }
    metrics |= {
        "score_mean": float(scores_S[~is_cut_S].mean()),
        "score_std": float(scores_S[~is_cut_S].std()),
    }
    metrics |= {
        "train_snippets": len(train),
        "heldout_snippets": len(heldout),
        "seconds": time.perf_counter() - started,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    return metrics


def pairwise_accuracy(scores_S: torch.Tensor, ratings_S: torch.Tensor, margin: float) -> float:
    """Share of the pairs, whose ratings differ by `margin` or more, that the scores order like the ratings."""
    difference_SS = ratings_S[:, None] - ratings_S[None]
    counted_SS = (difference_SS >= margin) & (difference_SS > 0)
    right_SS = (scores_S[:, None] > scores_S[None]) & counted_SS
    return float(right_SS.sum() / counted_SS.sum())


def _write_backbone(model_path: Path, folder: Path, *, num_layers: int) -> None:
    """The policy's first layers as a sequence classifier with one output, its head still zero."""
    config = AutoConfig.from_pretrained(model_path)
    if num_layers > config.num_hidden_layers:
        raise UserError(
            f"reward_model.num_layers: {num_layers}, but {model_path} has {config.num_hidden_layers} layers; "
            "set at most that"
        )
    config.num_hidden_layers = num_layers
    config.num_labels = 1
    config.pad_token_id = config.pad_token_id if config.pad_token_id is not None else config.eos_token_id
    model = AutoModelForSequenceClassification.from_pretrained(model_path, config=config, dtype=torch.float32)
    torch.nn.init.zeros_(model.score.weight)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path).save_pretrained(folder)


@torch.inference_mode()
def _features(
    folder: Path,
    rows: Sequence[RatedText],
    cut_copies: int,
    config: RewardModelConfig,
    report: Callable[[str], None],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """([S, F], [S], [S]): what the head sees of each text, its rating, and whether it is a cut snippet."""
    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    token_ids = [
        np.asarray(ids, dtype=np.int32) for ids in tokenizer([row.text for row in rows])["input_ids"]
    ]
    model = load_scalar_model(folder, "float32").eval()
    random = np.random.default_rng(config.split_seed)
    parts: list[torch.Tensor] = []
    of_row: list[int] = []
    cut: list[bool] = []
    for members in plan_rows([len(ids) for ids in token_ids], config.token_budget):
        row = pack_row(
            [(token_ids[member], np.zeros(len(token_ids[member]), dtype=bool)) for member in members]
        )
        hidden_TF = hidden_states(model.model, row)
        starts = row.last_S + 1 - torch.tensor([len(token_ids[member]) for member in members])
        for member, start, last in zip(members, starts.tolist(), row.last_S.tolist(), strict=True):
            shortest = start + MIN_CUT_TOKENS - 1
            copies = cut_copies if shortest < last else 0
            positions = [last, *random.integers(shortest, max(last, shortest + 1), size=copies)]
            parts.append(hidden_TF[positions])
            of_row += [member] * len(positions)
            cut += [False] + [True] * copies
    seconds, tokens = time.perf_counter() - started, sum(len(ids) for ids in token_ids)
    report(
        f"features of {len(rows)} snippets: {tokens} tokens in {seconds:.0f} s, {tokens / seconds:.0f} a second"
    )
    ratings_S = torch.tensor([row.rating for row in rows])[of_row]
    return torch.cat(parts).clone(), ratings_S, torch.tensor(cut)


def _fit_head(features_SF: torch.Tensor, ratings_S: torch.Tensor, config: RewardModelConfig) -> torch.Tensor:
    """[F]: the head that makes the better rated text of each pair score higher."""
    scale_F = features_SF.std(0)
    chosen_P, rejected_P = _draw_pairs(ratings_S, config)
    difference_PF = (features_SF[chosen_P] - features_SF[rejected_P]) / scale_F
    head_F = torch.zeros(features_SF.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([head_F], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")
    zeros_P = torch.zeros(len(difference_PF))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = bradley_terry_loss(difference_PF @ head_F, zeros_P) + config.l2 * head_F.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (head_F / scale_F).detach()


def _draw_pairs(ratings_S: torch.Tensor, config: RewardModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """([P], [P]): the better and the worse rated of each pair. Raises `UserError` if the ratings give too few."""
    generator = torch.Generator().manual_seed(config.split_seed)
    drawn = (2, DRAWS_PER_PAIR * config.num_pairs)
    first, second = torch.randint(len(ratings_S), drawn, generator=generator)
    far_apart = ratings_S[first] - ratings_S[second] >= config.min_rating_difference
    chosen_P, rejected_P = first[far_apart][: config.num_pairs], second[far_apart][: config.num_pairs]
    if len(chosen_P) == 0:
        raise UserError(
            f"reward_model: no two ratings are {config.min_rating_difference} apart; lower min_rating_difference"
        )
    return chosen_P, rejected_P


def _write_head(folder: Path, head_F: torch.Tensor) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.score.weight.copy_(head_F[None])
    model.save_pretrained(folder)
