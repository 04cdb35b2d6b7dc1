"""The losses of a reward model against each other, on three splits of the human ratings.

    python -m benchmarks.reward_models [--seeds 0 1 2]

All 10,605 snippets go through the backbone once; every split and loss then fits its head on the features, which
takes seconds. Accuracy is on held-out pairs by how far apart they are rated, on whole snippets and on cut ones.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import print_table
from core.ratings import SPLIT_FRACTIONS, RatedText, load_ratings, split_ratings
from learner.config import RewardModelConfig
from learner.rankings import draw
from learner.reward_head import fit_head
from learner.reward_stage import TextFeatures, heldout_metrics, ratings_of, text_features, write_backbone
from orchestration.assets import RATINGS, asset_path, resolve_model

NUM_LAYERS, TRAIN_SNIPPETS, HELDOUT_SNIPPETS, L2 = 18, 5000, 1000, 0.03
"""As in deploy/recipes/movie-reviews.toml."""
VARIANTS: dict[str, dict[str, Any]] = {
    "Bradley-Terry, whole snippets only": {"cut_copies": 0},
    "Bradley-Terry": {},
    "margin, 0.5 a point": {"loss": "margin", "margin_scale": 0.5},
    "margin, 1 a point": {"loss": "margin", "margin_scale": 1.0},
    "K-wise, K = 4": {"loss": "k-wise", "ranking_size": 4},
    "K-wise, K = 9": {"loss": "k-wise", "ranking_size": 9},
}
FIGURES = (
    "pairwise_accuracy_0",
    "pairwise_accuracy_1",
    "pairwise_accuracy_2",
    "pairwise_accuracy_cut_1",
    "rater_agreement",
    "calibration_error",
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = arguments.parse_args().seeds
    rows, _ = load_ratings(asset_path(RATINGS.name))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_backbone(resolve_model("asset:smollm2-135m-instruct"), folder, num_layers=NUM_LAYERS)
        texts = text_features(folder, rows, cut_copies=1, config=RewardModelConfig(), report=print)
    print_table(
        f"held-out figures: mean (smallest-largest) of the splits {seeds}",
        ("loss", *FIGURES),
        {name: _figures(texts, rows, seeds, options) for name, options in VARIANTS.items()},
    )


def _figures(
    texts: TextFeatures, rows: Sequence[RatedText], seeds: Sequence[int], options: dict[str, Any]
) -> list[str]:
    """Each figure's mean over the splits, and how far they are apart."""
    found = [
        _fit(texts, rows, RewardModelConfig(**{"split_seed": seed, "l2": L2, "cut_copies": 1, **options}))
        for seed in seeds
    ]
    return [
        f"{statistics.fmean(values):.3f} ({min(values):.3f}-{max(values):.3f})"
        for values in ([metrics[figure] for metrics in found] for figure in FIGURES)
    ]


def _fit(texts: TextFeatures, rows: Sequence[RatedText], config: RewardModelConfig) -> dict[str, float]:
    split = split_ratings(rows, seed=config.split_seed, fractions=SPLIT_FRACTIONS)
    place = {row.id: index for index, row in enumerate(rows)}
    train = _part(texts, [place[row.id] for row in split["train"][:TRAIN_SNIPPETS]])
    heldout = _part(texts, [place[row.id] for row in split["heldout"][:HELDOUT_SNIPPETS]])
    learned_S = ~train.is_cut_S | bool(config.cut_copies)
    ratings_S = ratings_of(rows)[train.row_of_S[learned_S]]
    head_F = fit_head(train.features_SF[learned_S], ratings_S, draw(ratings_S, config), config)
    return heldout_metrics(heldout, rows, head_F)


def _part(texts: TextFeatures, rows: list[int]) -> TextFeatures:
    """The features of some rows."""
    inside_S = torch.isin(texts.row_of_S, torch.tensor(rows))
    return TextFeatures(
        features_SF=texts.features_SF[inside_S],
        row_of_S=texts.row_of_S[inside_S],
        is_cut_S=texts.is_cut_S[inside_S],
    )


if __name__ == "__main__":
    main()
