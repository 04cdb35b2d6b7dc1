"""The datasets of a reward model: which groups it learns from, and which are held out to measure it on."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from actors.config import MovieReviewDataset
from actors.dataset import comparable, load_dataset
from core.errors import UserError
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
    fraction = recipe.reward_model.heldout_fraction
    groups: list[Group] = []
    for place, dataset in enumerate(recipe.reward_model.datasets):
        if isinstance(dataset, MovieReviewDataset):
            dataset = dataset.model_copy(update={"heldout_fraction": fraction})
        loaded = load_dataset(
            dataset,
            tokenizer,
            data_folder=ratings_folder() if isinstance(dataset, MovieReviewDataset) else None,
            max_tokens=recipe.model.max_model_len,
            rated_for='reward_model.loss = "margin"' if recipe.reward_model.loss == "margin" else None,
        )
        groups += comparable(loaded, f"reward_model.datasets.{place} ({dataset.kind})")
    train, heldout = split_groups(groups, fraction)
    if not train and len(groups) > 1:
        raise UserError(
            f"reward_model.datasets: its {len(groups)} groups have a prompt and texts in common, so that none can "
            "be held out whose texts are not learned from; give texts that differ, or more prompts"
        )
    return train, heldout


def split_groups(groups: Sequence[Group], heldout_fraction: float) -> Groups:
    """(to learn from, held out). No prompt is in both parts; if all groups share one, no text is in both: groups
    with a text in common stay together. What is in which, only their texts decide."""
    prompts = [prompt_of(group) for group in groups]
    if len(set(prompts)) > 1:
        keys, sizes = prompts, dict.fromkeys(prompts, 1)
    else:
        keys = _linked_by_texts(groups)
        sizes = Counter(keys)
    ordered = sorted(sizes, key=lambda key: hashlib.sha256(key.encode()).hexdigest())
    heldout = _filled(ordered, sizes, heldout_fraction)
    train = [group for group, key in zip(groups, keys, strict=True) if key not in heldout]
    return train, [group for group, key in zip(groups, keys, strict=True) if key in heldout]


def digest_of(groups: Groups) -> str:
    """Of all texts and ratings: other files under the same name make another reward model."""
    digest = hashlib.sha256()
    for part in groups:
        for group in part:
            for text, score in texts_of(group):
                digest.update(f"{text}\0{score}\0".encode())
        digest.update(b"\1")
    return digest.hexdigest()


def prompt_of(group: Group) -> str:
    if isinstance(group, RolloutGroup):
        return group.prompt.text
    return group.demonstrations[0].prompt.text


def texts_of(group: Group) -> list[tuple[str, float]]:
    """Prompt and completion in one, and how it is rated."""
    prompt = prompt_of(group)
    if isinstance(group, RolloutGroup):
        return [(f"{prompt}\0{rollout.completion.text}", rollout.score) for rollout in group.rollouts]
    return [(f"{prompt}\0{one.text}", one.score) for one in group.demonstrations]


def _filled(ordered: Sequence[str], sizes: Mapping[str, int], fraction: float) -> set[str]:
    """The first that fit into this fraction of all, and one at least: then the smallest."""
    left = int(sum(sizes.values()) * fraction)
    taken = set()
    for key in ordered:
        if sizes[key] <= left:
            taken.add(key)
            left -= sizes[key]
    return taken or {min(ordered, key=lambda key: sizes[key])}


def _linked_by_texts(groups: Sequence[Group]) -> list[str]:
    """For each group a key that it shares with the groups that it has a text in common with, and with theirs."""
    linked = list(range(len(groups)))

    def root(place: int) -> int:
        while linked[place] != place:
            linked[place] = place = linked[linked[place]]
        return place

    first_with: dict[str, int] = {}
    for place, group in enumerate(groups):
        for text, _ in texts_of(group):
            linked[root(place)] = root(first_with.setdefault(text, place))
    names: dict[int, str] = {}
    for place, group in enumerate(groups):
        whole = _whole_text(group)
        names[root(place)] = min(names.get(root(place), whole), whole)
    return [names[root(place)] for place in range(len(groups))]


def _whole_text(group: Group) -> str:
    return "\0".join(text for text, _ in texts_of(group))
