"""The datasets of a reward model: which groups it learns from, and which are held out to measure it on."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from actors.config import MovieReviewDataset
from actors.dataset import comparable, load_dataset
from core.messages import DemonstrationGroup, RolloutGroup
from orchestration.recipe.config import Recipe

Group = DemonstrationGroup | RolloutGroup
Groups = tuple[list[Group], list[Group]]
"""(to learn from, held out)."""


def load_reward_groups(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, ratings_folder: Callable[[], Path]
) -> Groups:
    """All groups of the datasets that tell their completions apart. Raises `UserError`."""
    assert recipe.reward_model is not None
    groups: list[Group] = []
    for place, dataset in enumerate(recipe.reward_model.datasets):
        loaded = load_dataset(
            dataset,
            tokenizer,
            data_folder=ratings_folder() if isinstance(dataset, MovieReviewDataset) else None,
            max_tokens=recipe.model.max_model_len,
            needs_ratings=recipe.reward_model.loss == "margin",
        )
        groups += comparable(loaded, f"reward_model.datasets.{place} ({dataset.kind})")
    return split_groups(groups, recipe.reward_model.heldout_fraction)


def split_groups(groups: Sequence[Group], heldout_fraction: float) -> Groups:
    """No prompt is in both parts, unless all groups share one. What is in which, only their texts decide."""
    prompts = {_prompt_text(group) for group in groups}
    keys = [_prompt_text(group) if len(prompts) > 1 else _whole_text(group) for group in groups]
    ordered = sorted(set(keys), key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    heldout = set(ordered[: max(1, int(len(ordered) * heldout_fraction))])
    train = [group for group, key in zip(groups, keys, strict=True) if key not in heldout]
    return train, [group for group, key in zip(groups, keys, strict=True) if key in heldout]


def digest_of(groups: Groups) -> str:
    """Of all texts and ratings: other files under the same name make another reward model."""
    digest = hashlib.sha256()
    for part in groups:
        for group in part:
            for text, score in _texts(group):
                digest.update(f"{text}\0{score}\0".encode())
        digest.update(b"\1")
    return digest.hexdigest()


def _prompt_text(group: Group) -> str:
    if isinstance(group, RolloutGroup):
        return group.prompt.text
    return group.demonstrations[0].prompt.text


def _whole_text(group: Group) -> str:
    return "\0".join(text for text, _ in _texts(group))


def _texts(group: Group) -> list[tuple[str, float]]:
    prompt = _prompt_text(group)
    if isinstance(group, RolloutGroup):
        return [(f"{prompt}\0{rollout.completion.text}", rollout.score) for rollout in group.rollouts]
    return [(f"{prompt}\0{one.text}", one.score) for one in group.demonstrations]
