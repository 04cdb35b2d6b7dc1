"""Completions for the tests of the alarm: made up, and of an untrained policy that says sensible, varied things."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestration.alarm.samples import Sample

NOUNS = (
    "river",
    "teacher",
    "window",
    "garden",
    "letter",
    "market",
    "doctor",
    "mountain",
    "engine",
    "village",
)
VERBS = (
    "watches",
    "builds",
    "follows",
    "remembers",
    "leaves",
    "paints",
    "crosses",
    "answers",
    "mends",
    "forgets",
)
ADJECTIVES = ("old", "quiet", "bright", "narrow", "heavy", "early", "distant", "broken", "gentle", "hidden")
PLACES = ("near", "behind", "above", "without", "beyond", "around", "inside", "beside", "under", "between")
ARTICLES = ("the", "a", "some", "every", "this", "another", "that", "one")


def make_sample(
    text: str = "",
    *,
    group: str = "group",
    num_tokens: int = 10,
    score: float = 0.0,
    rewards: Mapping[str, float] | None = None,
    kl_nats: float = 0.0,
    reference_nll: float | None = 3.0,
) -> Sample:
    return Sample(
        group=group,
        text=text,
        num_tokens=num_tokens,
        score=score,
        rewards={} if rewards is None else rewards,
        kl_nats=kl_nats,
        reference_nll=reference_nll,
    )


def sensible_text(choice: random.Random) -> str:
    """Two sentences of random English words."""
    words = [ARTICLES, ADJECTIVES, NOUNS, VERBS, ARTICLES, NOUNS, PLACES, ARTICLES, ADJECTIVES, NOUNS]
    sentences = [" ".join(choice.choice(kind) for kind in words) for _ in range(2)]
    return f" {sentences[0]}. {sentences[1].capitalize()}."


def sensible_step(size: int, seed: int, *, group_size: int = 2) -> list[Sample]:
    """As an untrained policy samples it; the gold reward agrees with the score, more or less."""
    choice = random.Random(seed)
    step = []
    for index in range(size):
        text, score = sensible_text(choice), choice.gauss(0, 1)
        step.append(
            make_sample(
                text,
                group=f"{seed}-{index // group_size}",
                num_tokens=len(text.split()) + choice.randrange(5),
                score=score,
                rewards={"proxy": score, "gold": score + choice.gauss(0, 1)},
                kl_nats=choice.gauss(0, 0.1),
                reference_nll=choice.gauss(3, 0.3),
            )
        )
    return step


def texts_step(*texts: str, groups: Sequence[str] | None = None) -> list[Sample]:
    """One completion a text, each of a prompt of its own unless `groups` says otherwise."""
    names = groups or [f"group-{index}" for index in range(len(texts))]
    return [make_sample(text, group=group) for text, group in zip(texts, names, strict=True)]


def write_step(folder: Path, step: int, samples: Sequence[Sample]) -> None:
    """As a run writes down what it sampled; log-probs are -3 under the reference, and make the sample's KL."""
    rows = [
        {
            "group": sample.group,
            "policy_version": step - 1,
            "prompt": "p",
            "completion": sample.text,
            "prompt_tokens": 1,
            "token_ids": [0] * (1 + sample.num_tokens),
            "truncated": False,
            "behavior_logprobs": [0.0] + [sample.kl_nats / sample.num_tokens - 3] * sample.num_tokens,
            "reference_logprobs": [0.0] + [-3.0] * sample.num_tokens,
            "rewards": dict(sample.rewards),
            "score": sample.score,
        }
        for sample in samples
    ]
    _write_rows(folder / "samples" / f"step-{step:06d}.jsonl", rows)


def write_heldout(folder: Path, when: str, samples: Sequence[Sample]) -> None:
    """As a run writes down an evaluation, `before` or `after` training."""
    rows = [
        {
            "prompt": "p",
            "completion": sample.text,
            "completion_ids": [0] * sample.num_tokens,
            "rewards": dict(sample.rewards),
            "score": sample.score,
            "kl_nats": sample.kl_nats,
        }
        for sample in samples
    ]
    _write_rows(folder / f"heldout-{when}.jsonl", rows)


def _write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
