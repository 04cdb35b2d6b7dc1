"""Texts that are kept back from datasets: how likely a policy finds them is the held-out loss of what it learns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from actors.config import DatasetConfig, LearnedTexts
from core.errors import UserError
from core.messages import Demonstration, DemonstrationGroup
from orchestration.reward_data import Group, prompt_of, split_groups, texts_of

HELDOUT_TEXTS = 64
"""Texts whose perplexity is reported before and after, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What is left to learn from."""

    datasets: list[Sequence[Group]]
    mixed_in: list[Sequence[Group]]


def hold_out(
    datasets: Sequence[Sequence[Group]],
    configs: Sequence[DatasetConfig],
    mixed_in: Sequence[Sequence[Group]] = (),
) -> tuple[Learned, DemonstrationGroup | None]:
    """What is left of each dataset, and of the texts that are mixed in, to learn from; and what was kept back, the
    best rated text of a group, of each dataset in turn; None if nothing was. What one dataset holds out is learned
    from in none. Raises `UserError` if nothing is left of one."""
    parts = [
        _split(groups, config, place)
        for place, (groups, config) in enumerate(zip(datasets, configs, strict=True))
    ]
    kept_back = [heldout for _, heldout in parts]
    if not any(kept_back):
        return Learned(datasets=list(datasets), mixed_in=list(mixed_in)), None
    is_heldout = _among(kept_back, datasets)
    learned = Learned(
        datasets=[_without(is_heldout, train, f"datasets.{k}") for k, (train, _) in enumerate(parts)],
        mixed_in=[
            _without(is_heldout, groups, f"pretraining.datasets.{k}") for k, groups in enumerate(mixed_in)
        ],
    )
    best = [
        [_best(group) for group in groups if isinstance(group, DemonstrationGroup)] for groups in kept_back
    ]
    in_turn = [text for texts in zip_longest(*best) for text in texts if text is not None]
    return learned, DemonstrationGroup(
        group_id="heldout-texts", demonstrations=tuple(in_turn[:HELDOUT_TEXTS])
    )


def _split(
    groups: Sequence[Group], config: DatasetConfig, place: int
) -> tuple[Sequence[Group], Sequence[Group]]:
    if not isinstance(config, LearnedTexts) or config.heldout_fraction == 0:
        return groups, []
    train, heldout = split_groups(groups, config.heldout_fraction)
    if not train:
        raise UserError(
            f"datasets.{place}.heldout_fraction: leaves nothing to learn from; give texts that differ, or set 0"
        )
    return train, heldout


def _among(
    kept_back: Sequence[Sequence[Group]], datasets: Sequence[Sequence[Group]]
) -> Callable[[Group], bool]:
    """Whether a group has a prompt or a text that is held out. A prompt that a whole dataset shares, and an empty
    one, say nothing: there it is texts that are held out."""
    texts = {text for groups in kept_back for group in groups for text, _ in texts_of(group)}
    prompts = {
        prompt_of(group)
        for heldout, groups in zip(kept_back, datasets, strict=True)
        if len({prompt_of(group) for group in groups}) > 1
        for group in heldout
    } - {""}
    return lambda group: prompt_of(group) in prompts or any(text in texts for text, _ in texts_of(group))


def _without(is_heldout: Callable[[Group], bool], groups: Sequence[Group], where: str) -> Sequence[Group]:
    left = [group for group in groups if not is_heldout(group)]
    if not left:
        raise UserError(
            f"{where}: nothing is left to learn from, for all of it is held out of another dataset; give other "
            "texts, or a smaller heldout_fraction there"
        )
    return left


def _best(group: DemonstrationGroup) -> Demonstration:
    return max(group.demonstrations, key=lambda text: text.score)
