"""Datasets and runs as what a reward model learns from: completions of one prompt, compared with each other.

A completion is scored at its last token that is text, behind its prompt: a dataset's completions, and many of a
run's samples, end with an end-of-text token, which the served model does not look at either. What is held out are
whole groups.

Dimension key: S texts, F features (hidden size), K texts of a group.
"""

import math
from collections.abc import Callable, Sequence, Set
from pathlib import Path

import numpy as np
import torch

from core.errors import UserError
from core.messages import DemonstrationGroup, Int32s, RolloutGroup
from core.models import hidden_states, load_scalar_model
from core.packing import pack_row, plan_rows
from core.scored_text import scored_text
from learner.config import RewardModelConfig
from learner.rankings import RankedTexts, within_groups
from learner.reward_head import fit_head
from learner.reward_metrics import calibration_error

MARGINS = (0.0, 1.0, 2.0)
"""Held-out accuracy is reported on pairs of a group whose ratings differ by at least these."""

Group = DemonstrationGroup | RolloutGroup


class RatedGroups:
    """Groups of completions with their ratings: of people, or of the rewards that scored a run's samples."""

    def __init__(
        self,
        config: RewardModelConfig,
        *,
        train: Sequence[Group],
        heldout: Sequence[Group],
        special_ids: Set[int],
        report: Callable[[str], None],
    ) -> None:
        """`special_ids` are those of the tokenizer. Raises `UserError` for groups that the loss has no use for."""
        self._config = config
        self._train = _texts_of(train, config, special_ids)
        self._heldout_sizes = [_size(group) for group in heldout]
        self._heldout_ids, _, self._heldout_ratings_S = _flat(heldout, special_ids)
        report(f"{len(train)} groups of rated completions to learn from, {len(heldout)} held out")

    def fit_head(self, folder: Path) -> torch.Tensor:
        features_SF = last_features(folder, self._train.token_ids, self._config.token_budget)
        return fit_head(features_SF, self._train.ratings_S, self._train.rankings, self._config)

    def ranked_texts(self, folder: Path) -> RankedTexts:
        return self._train

    def heldout_metrics(self, folder: Path, head_F: torch.Tensor) -> dict[str, float]:
        features_SF = last_features(folder, self._heldout_ids, self._config.token_budget)
        figures = group_metrics(features_SF @ head_F, self._heldout_ratings_S, self._heldout_sizes)
        return figures | {"heldout_groups": len(self._heldout_sizes)}


@torch.inference_mode()
def last_features(folder: Path, token_ids: Sequence[Int32s], token_budget: int) -> torch.Tensor:
    """[S, F]: the hidden state of each text's last token."""
    model = load_scalar_model(folder, "float32").eval()
    features: list[torch.Tensor] = [torch.empty(0)] * len(token_ids)
    for members in plan_rows([len(ids) for ids in token_ids], token_budget):
        row = pack_row([(token_ids[member], np.zeros(len(token_ids[member]), bool)) for member in members])
        for member, feature_F in zip(members, hidden_states(model.model, row)[row.last_S], strict=True):
            features[member] = feature_F
    return torch.stack(features).clone()


def group_metrics(scores_S: torch.Tensor, ratings_S: torch.Tensor, sizes: Sequence[int]) -> dict[str, float]:
    """Accuracy by margin and calibration, over the pairs within groups; mean and spread of the scores."""
    rating_gaps, score_gaps = [], []
    for ratings_K, scores_K in zip(ratings_S.split(list(sizes)), scores_S.split(list(sizes)), strict=True):
        rating_gap_KK = ratings_K[:, None] - ratings_K[None]
        better_KK = rating_gap_KK > 0
        rating_gaps.append(rating_gap_KK[better_KK])
        score_gaps.append((scores_K[:, None] - scores_K[None])[better_KK])
    rating_gap_P, score_gap_P = torch.cat(rating_gaps), torch.cat(score_gaps)
    metrics = {
        f"pairwise_accuracy_{margin:g}": float((score_gap_P[rating_gap_P >= margin] > 0).float().mean())
        for margin in MARGINS
    }
    both_ways_P = torch.cat([score_gap_P, -score_gap_P]).sigmoid()
    preferred_P = torch.arange(len(both_ways_P)) < len(score_gap_P)
    metrics["calibration_error"] = (
        calibration_error(both_ways_P, preferred_P) if len(both_ways_P) else math.nan
    )
    metrics |= {"score_mean": float(scores_S.mean()), "score_std": float(scores_S.std())}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}  # some need more pairs


def _texts_of(groups: Sequence[Group], config: RewardModelConfig, special_ids: Set[int]) -> RankedTexts:
    token_ids, starts, ratings_S = _flat(groups, special_ids)
    if not groups:
        raise UserError("reward_model.datasets: too few groups to hold some out; give at least 2")
    rankings = within_groups(ratings_S, [_size(group) for group in groups], config)
    return RankedTexts(token_ids=token_ids, starts=starts, ratings_S=ratings_S, rankings=rankings)


def _flat(groups: Sequence[Group], special_ids: Set[int]) -> tuple[list[Int32s], list[int], torch.Tensor]:
    """Token ids of all completions behind their prompts, where each begins, and its rating."""
    members = [member for group in groups for member in _members(group)]
    token_ids = [scored_text(ids, start, special_ids) for ids, start, _ in members]
    return token_ids, [start for _, start, _ in members], torch.tensor([rating for _, _, rating in members])


def _size(group: Group) -> int:
    return len(group.rollouts if isinstance(group, RolloutGroup) else group.demonstrations)


def _members(group: Group) -> list[tuple[Int32s, int, float]]:
    if isinstance(group, RolloutGroup):
        return [(r.completion.token_ids_T, r.completion.num_prompt_tokens, r.score) for r in group.rollouts]
    return [(d.token_ids_T, len(d.prompt.token_ids), d.score) for d in group.demonstrations]
