"""One completion, with all that is measured on it alone; made once, and looked at many times."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from orchestration.alarm.languages import MIN_LETTERS, language_of
from orchestration.alarm.samples import Sample
from orchestration.alarm.text_figures import (
    kinds_of_characters,
    ngrams,
    num_letters,
    phrases_of,
    repetition,
    words_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A completion and its figures."""

    sample: Sample
    repetition: float
    kinds: Counter[str]
    """How many characters of which kind."""
    is_long_enough: bool
    """To tell its language."""
    language: str | None
    """None if it cannot be told."""
    bigrams: frozenset[str]
    """Pairs of words."""
    phrases: frozenset[str]


def profile(sample: Sample) -> Profile:
    """Measure one completion."""
    words, kinds = words_of(sample.text), kinds_of_characters(sample.text)
    is_long_enough = num_letters(kinds) >= MIN_LETTERS
    return Profile(
        sample=sample,
        repetition=repetition(words),
        kinds=kinds,
        is_long_enough=is_long_enough,
        language=language_of(sample.text) if is_long_enough else None,
        bigrams=frozenset(ngrams(words, 2)),
        phrases=phrases_of(words),
    )


def profiles_of(samples: Iterable[Sample]) -> list[Profile]:
    return [profile(sample) for sample in samples]
