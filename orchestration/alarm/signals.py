"""A step's completions in, named figures out. Pure functions: the order of the completions does not matter, and
what cannot be measured is left out."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from orchestration.alarm.diversity import compression, distinct_2, self_overlap
from orchestration.alarm.phrases import PhraseCounts, count_phrases, phrase_growth
from orchestration.alarm.profiles import Profile
from orchestration.alarm.samples import Sample
from orchestration.alarm.text_figures import non_alphabetic, unusual_characters

USUAL_SHARE = 0.01
"""Of the untrained policy's letters, from which on a script is a usual one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Mean and standard deviation of a reward over single completions of the untrained policy."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Scale":
        return cls(mean=statistics.fmean(values), std=statistics.pstdev(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What the untrained policy does, as far as signals are measured against it."""

    language: str | None
    """The most frequent one; None if it cannot be told."""
    scripts: frozenset[str]
    phrases: PhraseCounts
    score: Scale
    gold: dict[str, Scale]
    """Of the rewards that are recorded and not trained on, those that differ between completions."""


def habits_of(profiles: Sequence[Profile], gold: Sequence[str]) -> Habits:
    """Of the untrained policy's completions; `gold` names the rewards of weight 0."""
    languages = Counter(profile.language for profile in profiles if profile.language)
    letters: Counter[str] = Counter()
    for profile in profiles:
        letters.update({kind: count for kind, count in profile.kinds.items() if kind.isupper()})
    scales = {name: Scale.of([profile.sample.rewards[name] for profile in profiles]) for name in gold}
    return Habits(
        language=max(sorted(languages), key=lambda name: languages[name], default=None),
        scripts=frozenset(kind for kind, count in letters.items() if count >= USUAL_SHARE * letters.total()),
        phrases=count_phrases(profiles),
        score=Scale.of([profile.sample.score for profile in profiles]),
        gold={name: scale for name, scale in scales.items() if scale.std > 0},
    )


def measure(profiles: Sequence[Profile], habits: Habits) -> dict[str, float]:
    """Every figure of a step's completions that can be measured; docs/alarm.md says what each means."""
    samples = [profile.sample for profile in profiles]
    scores = [sample.score for sample in samples]
    gold = [gold_of(profile, habits) for profile in profiles] if habits.gold else []
    figures = {
        "repetition": statistics.fmean(profile.repetition for profile in profiles),
        "compression": compression(profiles),
        "non_alphabetic": statistics.fmean(non_alphabetic(profile.kinds) for profile in profiles),
        "unusual_characters": statistics.fmean(
            unusual_characters(profile.kinds, habits.scripts) for profile in profiles
        ),
        "language_switch": language_switch(profiles, habits.language),
        "length": statistics.fmean(sample.num_tokens for sample in samples),
        "distinct_2": distinct_2(profiles),
        "self_overlap": self_overlap(profiles),
        "phrase_growth": phrase_growth(count_phrases(profiles), habits.phrases),
        "reward_length": correlation(scores, [sample.num_tokens for sample in samples]),
        "score_std": statistics.pstdev(scores),
        "reference_nll": _mean([s.reference_nll for s in samples if s.reference_nll is not None]),
        "kl_per_token": kl_per_token(samples),
        "gold_correlation": correlation(scores, gold) if gold else None,
        "gold_gain": statistics.fmean(gold) if gold else None,
        "score_gain": _gain(scores, habits.score),
    }
    return {name: value for name, value in figures.items() if value is not None}


def kl_per_token(samples: Sequence[Sample]) -> float | None:
    """Nats of KL from the reference for each token; None where no completion has any."""
    num_tokens = sum(sample.num_tokens for sample in samples)
    return math.fsum(sample.kl_nats for sample in samples) / num_tokens if num_tokens else None


def language_switch(profiles: Sequence[Profile], language: str | None) -> float | None:
    """Share of the completions that are in another language, of those long enough to tell."""
    judged = [profile for profile in profiles if profile.is_long_enough]
    if language is None or not judged:
        return None
    return sum(profile.language not in (None, language) for profile in judged) / len(judged)


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's; None where one side does not vary."""
    if len(first) < 2 or min(first) == max(first) or min(second) == max(second):
        return None
    return statistics.correlation(first, second)


def gold_of(profile: Profile, habits: Habits) -> float:
    """Mean of a completion's gold rewards, each in standard deviations from the untrained policy's mean."""
    return statistics.fmean(
        (profile.sample.rewards[name] - scale.mean) / scale.std for name, scale in habits.gold.items()
    )


def _gain(scores: Sequence[float], scale: Scale) -> float | None:
    return (statistics.fmean(scores) - scale.mean) / scale.std if scale.std else None


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
