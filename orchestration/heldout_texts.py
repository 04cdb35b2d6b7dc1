"""Texts that are kept back from datasets: how likely a policy finds them is the held-out loss of what it learns."""

from collections.abc import Sequence

from actors.config import DatasetConfig, LearnedTexts
from core.errors import UserError
from core.messages import DemonstrationGroup
from orchestration.reward_data import Group, split_groups

HELDOUT_TEXTS = 64
"""Texts whose perplexity is reported before and after, at most."""


def hold_out(
    datasets: Sequence[Sequence[Group]], configs: Sequence[DatasetConfig]
) -> tuple[list[Sequence[Group]], DemonstrationGroup | None]:
    """What is left of each dataset to learn from, and what was kept back, the best rated text of a group; None if
    nothing was. Raises `UserError` if nothing is left."""
    left: list[Sequence[Group]] = []
    kept_back: list[Group] = []
    for place, (groups, config) in enumerate(zip(datasets, configs, strict=True)):
        if isinstance(config, LearnedTexts) and config.heldout_fraction > 0:
            groups, heldout = split_groups(groups, config.heldout_fraction)
            kept_back += heldout
        if not groups:
            raise UserError(
                f"datasets.{place}.heldout_fraction: leaves nothing to learn from; give texts that differ, or set 0"
            )
        left.append(groups)
    best = [
        max(group.demonstrations, key=lambda text: text.score)
        for group in kept_back
        if isinstance(group, DemonstrationGroup)
    ]
    if not best:
        return left, None
    return left, DemonstrationGroup(group_id="heldout-texts", demonstrations=tuple(best[:HELDOUT_TEXTS]))
