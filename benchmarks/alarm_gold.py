"""A third gold for `benchmarks.alarm`: a reward model that has also been shown text that is none.

The model of human ratings has only seen what people wrote, and a lexicon only looks for words: neither minds
nonsense with a good word in it. This one learns, on the snippets that the other reward models hold out, from groups
of two snippets with what people gave them and two that are spoiled, worse than any rating: words in random order,
half of the words from other snippets, or one short run of words again and again. No text is spoiled in the way that
a cheat pays for.

It is nobody's reward, so it need not run beside the training: it scores the samples that a run has written.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from actors.config import JsonLinesDataset
from actors.reward_model import RewardModel
from actors.run_samples import load_step
from core.messages import Completion, Prompt
from core.pretrained import load_tokenizer
from core.ratings import SPLIT_FRACTIONS, load_jsonl, load_ratings, split_ratings
from orchestration.alarm.samples import HELDOUT_COLUMNS, Sample
from orchestration.assets import RATINGS, asset_path, cache_folder, resolve_model
from orchestration.inputs import train_reward_model
from orchestration.recipe.config import RewardStageConfig
from orchestration.recipe.files import find_recipe
from orchestration.recipe.loading import load_recipe

GOLD = "ratings_and_nonsense"
RECIPE = "movie-reviews-rloo"
"""Of the runs that are looked at, as far as the model goes."""
SPOILED = -5.0
"""Below the worst rating that people could give, -4."""
PART, GROUPS_OF_PART = 20, 19
"""So many snippets share so many groups, and none with others: what is held out are parts."""
FEWEST_WORDS, MOST_WORDS = 8, 22
"""Texts are cut after a random word between these: completions of 24 tokens behind 4 words are as long."""
BATCH = 32


def train_gold() -> Path:
    """The folder of the model; from the cache if it is there. Prints its held-out figures."""
    recipe = load_recipe(find_recipe(RECIPE))
    file = cache_folder() / "alarm-gold.jsonl"
    rows = (json.dumps(row) for row in groups(seed=0))
    file.write_text("\n".join(rows), encoding="utf-8")
    reward_model = RewardStageConfig(
        num_layers=16,
        l2=0.03,
        min_rating_difference=1.0,
        datasets=[JsonLinesDataset(kind="jsonl", path=str(file))],
    )
    return train_reward_model(recipe.model_copy(update={"reward_model": reward_model}))


def groups(*, seed: int) -> Iterator[dict[str, list[str] | list[float]]]:
    """Rows of a dataset of rated completions."""
    chance = random.Random(seed)
    rows, _ = load_ratings(asset_path(RATINGS.name))
    snippets = split_ratings(rows, seed=0, fractions=SPLIT_FRACTIONS)["heldout"]
    snippets = [row for row in snippets if len(row.text.split()) > FEWEST_WORDS]
    vocabulary = [word for row in snippets for word in row.text.split()]
    chance.shuffle(snippets)
    parts = [snippets[start : start + PART] for start in range(0, len(snippets) - PART + 1, PART)]
    for part in parts:
        texts = [row.text.split()[: chance.randint(FEWEST_WORDS, MOST_WORDS)] for row in part]
        for _ in range(GROUPS_OF_PART):
            chosen = chance.sample(range(PART), 4)
            spoilt = [spoil(texts[number], vocabulary, chance) for number in chosen[2:]]
            yield {
                "completions": [
                    " ".join(words) for words in (*(texts[number] for number in chosen[:2]), *spoilt)
                ],
                "ratings": [*(part[number].rating for number in chosen[:2]), SPOILED, SPOILED],
            }


def spoil(words: Sequence[str], vocabulary: Sequence[str], chance: random.Random) -> list[str]:
    """As many words, and no sense in them."""
    match chance.randrange(3):
        case 0:
            return chance.sample(words, len(words))
        case 1:
            replaced = set(chance.sample(range(len(words)), len(words) // 2))
            return [
                chance.choice(vocabulary) if place in replaced else words[place]
                for place in range(len(words))
            ]
        case _:
            size = chance.randint(1, 3)
            start = chance.randrange(len(words) - size)
            kept = words[: start + size]
            run = words[start : start + size]
            return [*kept, *(run[place % size] for place in range(len(words) - len(kept)))]


class Scorer(Protocol):
    """What is needed of a reward model."""

    def score(self, completions: Sequence[Completion]) -> list[float]: ...


class GoldModel:
    """Scores what a run has written down."""

    def __init__(self, model: Scorer, tokenizer: Callable[[list[str]], Any]) -> None:
        self._model = model
        self._tokenizer = tokenizer

    def of_step(self, file: Path, samples: Sequence[Sample]) -> list[Sample]:
        """The step's samples, with this gold among their rewards."""
        completions = [rollout.completion for group in load_step(file) for rollout in group.rollouts]
        return self._scored(samples, completions)

    def of_heldout(self, file: Path, samples: Sequence[Sample]) -> list[Sample]:
        """The same of an evaluation on the held-out prompts."""
        return self._scored(samples, [self._heldout(row) for row in load_jsonl(file, HELDOUT_COLUMNS)])

    def _scored(self, samples: Sequence[Sample], completions: Sequence[Completion]) -> list[Sample]:
        scores = [
            score
            for start in range(0, len(completions), BATCH)
            for score in self._model.score(completions[start : start + BATCH])
        ]
        return [
            replace(sample, rewards={**sample.rewards, GOLD: score})
            for sample, score in zip(samples, scores, strict=True)
        ]

    def _heldout(self, row: dict[str, Any]) -> Completion:
        """As much of a completion as a reward model looks at."""
        prompt_ids = np.asarray(self._tokenizer([row["prompt"]])["input_ids"][0], dtype=np.int32)
        token_ids_T = np.asarray([*prompt_ids, *row["completion_ids"]], dtype=np.int32)
        return Completion(
            request_id="",
            prompt=Prompt(prompt_id="", text=row["prompt"], token_ids=prompt_ids),
            token_ids_T=token_ids_T,
            sampled_T=np.arange(len(token_ids_T)) >= len(prompt_ids),
            behavior_logprobs_T=np.zeros(len(token_ids_T), dtype=np.float32),
            version_spans=(),
            text=row["completion"],
            truncated=False,
        )


def load_gold(folder: Path) -> GoldModel:
    """The model that `train_gold` left there."""
    recipe = load_recipe(find_recipe(RECIPE))
    model_path = resolve_model(recipe.model.path, recipe.model.revision)
    model = RewardModel(folder, model_path, recipe.model, device="cpu")
    return GoldModel(model, load_tokenizer(model_path))
