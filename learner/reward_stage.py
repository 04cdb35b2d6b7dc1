"""A reward model from ratings: a frozen, truncated backbone and a scalar head learned from comparisons.

    rated texts -> hidden states (once) -> head (learner/reward_head.py) -> sequence classifier

The texts are the rated snippets of the demo (here), or the groups of datasets (learner/reward_groups.py).

The backbone is the policy's own model, cut after `num_layers`: its middle layers tell liking better than
its last ones, and a shorter model serves faster.

People rated whole snippets, but completions stop at `max_new_tokens`. A head that has only seen last tokens
of whole snippets reads much into whatever token a cut text happens to end with, so it learns from cut
snippets as well (as the token-level verifiers of arXiv:2110.14168, section 4.3). One forward pass gives the
features of a snippet and of all its cuts.

Dimension key: S texts (snippets and cut snippets), F features (hidden size).
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from core.errors import UserError
from core.messages import Int32s
from core.models import SCORE_OFFSET, hidden_states, load_scalar_model
from core.packing import pack_row, plan_rows
from core.pretrained import load_network, load_tokenizer, read_config
from core.ratings import SPLIT_FRACTIONS, RatedText, load_ratings, split_ratings
from learner.config import RewardModelConfig
from learner.rankings import RankedTexts, draw
from learner.reward_head import fit_head
from learner.reward_metrics import pairwise_accuracy, rater_agreement
from learner.reward_normalization import Sampling, mean_score_of_samples

MIN_CUT_TOKENS = 8
"""A snippet is cut after this many tokens or later; fewer say little."""
MARGINS = (0.0, 1.0, 2.0)
"""Held-out accuracy is reported on pairs whose mean ratings differ by at least these."""


class RewardData(Protocol):
    """Rated texts, in part held out. `folder` holds the reward model as it is."""

    def fit_head(self, folder: Path) -> torch.Tensor:
        """[F]: learned on the features of the backbone."""
        ...

    def ranked_texts(self, folder: Path) -> RankedTexts:
        """To tune the backbone on."""
        ...

    def heldout_metrics(self, folder: Path, head_F: torch.Tensor) -> dict[str, float]: ...


def train_reward_model(
    config: RewardModelConfig,
    *,
    data: RewardData,
    model_path: Path,
    folder: Path,
    report: Callable[[str], None],
    prompts: Sequence[Int32s],
    sampling: Sampling,
) -> dict[str, float]:
    """Write the reward model, an ordinary sequence classifier, into `folder`; its held-out figures.

    `prompts` are those that it is normalized on, sampled from as `sampling` says; with none its scores stay as
    learned.
    """
    started = time.perf_counter()
    torch.set_num_threads(config.threads)
    write_backbone(model_path, folder, num_layers=config.num_layers)
    _write_head(folder, data.fit_head(folder), offset=0.0)
    tuned: dict[str, float] = {}
    if config.tuning:
        from learner.reward_tuning import tune_on_ranks  # DeepSpeed, for those who train the backbone

        tuned = tune_on_ranks(folder, data.ranked_texts(folder), config, report=report)
    head: Any = load_scalar_model(folder, "float32").model.score
    head_F = head.weight.detach()[0]
    metrics = data.heldout_metrics(folder, head_F) | tuned
    if prompts:
        metrics["score_offset"] = mean_score_of_samples(
            load_scalar_model(folder, "float32").eval(),
            model_path,
            prompts,
            sampling=sampling,
            token_budget=config.token_budget,
            seed=config.split_seed,
        )
        metrics["score_mean"] -= metrics["score_offset"]
        _write_head(folder, head_F, offset=metrics["score_offset"])
    metrics["seconds"] = time.perf_counter() - started
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    return metrics


class RatedSnippets:
    """Movie-review snippets, whole and cut, any two of which can be compared."""

    def __init__(
        self, config: RewardModelConfig, *, data_folder: Path, report: Callable[[str], None]
    ) -> None:
        self._config = config
        self._report = report
        rows, malformed = load_ratings(data_folder)
        split = split_ratings(rows, seed=config.split_seed, fractions=SPLIT_FRACTIONS)
        self._train = split["train"][: config.train_snippets]
        self._heldout = split["heldout"][: config.heldout_snippets]
        report(
            f"{len(rows)} rated snippets ({len(malformed)} malformed lines left out): "
            f"{len(self._train)} to learn from, {len(self._heldout)} held out"
        )

    def fit_head(self, folder: Path) -> torch.Tensor:
        config = self._config
        texts = text_features(
            folder, self._train, cut_copies=config.cut_copies, config=config, report=self._report
        )
        ratings_S = ratings_of(self._train)[texts.row_of_S]
        return fit_head(texts.features_SF, ratings_S, draw(ratings_S, config), config)

    def ranked_texts(self, folder: Path) -> RankedTexts:
        """Cut at other places than those that the head has learned from."""
        tokenizer = load_tokenizer(folder)
        random = np.random.default_rng(self._config.split_seed)
        texts: list[Int32s] = []
        of_row: list[int] = []
        for number, ids in enumerate(tokenizer([row.text for row in self._train])["input_ids"]):
            copies = self._config.cut_copies if len(ids) > MIN_CUT_TOKENS else 0
            lengths = [len(ids), *random.integers(MIN_CUT_TOKENS, len(ids), size=copies).tolist()]
            texts += [np.asarray(ids[:length], dtype=np.int32) for length in lengths]
            of_row += [number] * len(lengths)
        ratings_S = ratings_of(self._train)[of_row]
        rankings = draw(ratings_S, self._config)
        return RankedTexts(token_ids=texts, starts=[1] * len(texts), ratings_S=ratings_S, rankings=rankings)

    def heldout_metrics(self, folder: Path, head_F: torch.Tensor) -> dict[str, float]:
        texts = text_features(folder, self._heldout, cut_copies=1, config=self._config, report=self._report)
        sizes = {"train_snippets": len(self._train), "heldout_snippets": len(self._heldout)}
        return heldout_metrics(texts, self._heldout, head_F) | sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFeatures:
    """What a head sees of some rows' texts, whole and cut."""

    features_SF: torch.Tensor
    row_of_S: torch.Tensor
    """[S] int64: which row a text is of."""
    is_cut_S: torch.Tensor
    """[S] bool."""


def ratings_of(rows: Sequence[RatedText]) -> torch.Tensor:
    """[rows]: mean ratings."""
    return torch.tensor([row.rating for row in rows])


def heldout_metrics(texts: TextFeatures, rows: Sequence[RatedText], head_F: torch.Tensor) -> dict[str, float]:
    """Accuracy by margin on whole and on cut texts; agreement with single raters on whole ones."""
    scores_S, ratings_S = texts.features_SF @ head_F, ratings_of(rows)[texts.row_of_S]
    whole_S = ~texts.is_cut_S
    accuracies = {
        f"{name}_{margin:g}": pairwise_accuracy(scores_S[of_S], ratings_S[of_S], margin)
        for name, of_S in (("pairwise_accuracy", whole_S), ("pairwise_accuracy_cut", texts.is_cut_S))
        for margin in MARGINS
        if of_S.any()
    }
    raters_S = [rows[row].ratings for row in texts.row_of_S[whole_S].tolist()]
    spread = {"score_mean": float(scores_S[whole_S].mean()), "score_std": float(scores_S[whole_S].std())}
    metrics = accuracies | rater_agreement(scores_S[whole_S], raters_S) | spread
    return {name: value for name, value in metrics.items() if math.isfinite(value)}  # some need more texts


def write_backbone(model_path: Path, folder: Path, *, num_layers: int) -> None:
    """The policy's first layers as a sequence classifier with one output, its head still zero."""
    config = read_config(model_path)
    if num_layers > config.num_hidden_layers:
        raise UserError(
            f"reward_model.num_layers: {num_layers}, but {model_path} has {config.num_hidden_layers} layers; "
            "set at most that"
        )
    config.num_hidden_layers = num_layers
    config.num_labels = 1
    config.pad_token_id = config.pad_token_id if config.pad_token_id is not None else config.eos_token_id
    model = load_network(AutoModelForSequenceClassification, model_path, config=config, dtype=torch.float32)
    torch.nn.init.zeros_(model.score.weight)
    model.save_pretrained(folder)
    load_tokenizer(model_path).save_pretrained(folder)


@torch.inference_mode()
def text_features(
    folder: Path,
    rows: Sequence[RatedText],
    *,
    cut_copies: int,
    config: RewardModelConfig,
    report: Callable[[str], None],
) -> TextFeatures:
    """The last token's hidden state of each row's text, and of `cut_copies` cut ones of it."""
    started = time.perf_counter()
    tokenizer = load_tokenizer(folder)
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
    return TextFeatures(
        features_SF=torch.cat(parts).clone(), row_of_S=torch.tensor(of_row), is_cut_S=torch.tensor(cut)
    )


def _write_head(folder: Path, head_F: torch.Tensor, *, offset: float) -> None:
    model = load_network(AutoModelForSequenceClassification, folder, dtype=torch.float32)
    with torch.no_grad():
        model.score.weight.copy_(head_F[None])
    setattr(model.config, SCORE_OFFSET, offset)
    model.save_pretrained(folder)
