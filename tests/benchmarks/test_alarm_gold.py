"""Spoiled texts, and a gold that is added to the samples of a run afterwards."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.alarm import watched_run, with_gold
from benchmarks.alarm_gold import GOLD, GoldModel, spoil
from core.messages import Completion
from tests.alarm_fakes import sensible_step, write_step
from tests.orchestration.alarm.test_review import SIZE, make_run

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
OTHERS = [word.upper() for word in WORDS]


def test_a_spoiled_text_is_as_long_and_says_nothing() -> None:
    texts = [spoil(WORDS, OTHERS, random.Random(seed)) for seed in range(60)]
    assert all(len(text) == len(WORDS) and text != WORDS for text in texts)
    shuffled = [text for text in texts if Counter(text) == Counter(WORDS)]
    mixed = [text for text in texts if sum(word in OTHERS for word in text) == len(WORDS) // 2]
    repeated = [text for text in texts if len(set(text)) < len(WORDS) and not set(text) & set(OTHERS)]
    assert len(shuffled) + len(mixed) + len(repeated) == len(texts)
    assert min(len(shuffled), len(mixed), len(repeated)) > 10


class Counting:
    """In the place of the reward model: a completion scores its number of tokens."""

    def score(self, completions: Sequence[Completion]) -> list[float]:
        return [float(completion.num_completion_tokens) for completion in completions]


def letters(texts: list[str]) -> dict[str, Any]:
    """In the place of the tokenizer."""
    return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def test_every_sample_gets_the_score_of_its_own_completion(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "movie-reviews-rloo")
    for step in (1, 2, 3):
        write_step(folder, step, sensible_step(SIZE, seed=step))
    run = with_gold(watched_run(folder), folder, GoldModel(Counting(), letters))
    assert run.golds == ["gold", GOLD]
    for samples in (run.untrained, *run.steps.values()):
        assert [sample.rewards[GOLD] for sample in samples] == [sample.num_tokens for sample in samples]
        assert len({sample.num_tokens for sample in samples}) > 1
        assert all("gold" in sample.rewards for sample in samples)
