"""Phrases that became frequent: the plainest way to see what a policy has found out about its reward."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from orchestration.alarm.profiles import Profile

LARGEST_SHARE_BEFORE = 0.05
"""Phrases that more of the untrained policy's completions had, such as "and the", are the language's own: how often
they occur changes with the style."""
NUM_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PhraseCounts:
    """In how many completions of the untrained policy each phrase occurred."""

    counts: Counter[str]
    num_texts: int

    def share(self, phrase: str) -> float:
        return self.counts[phrase] / self.num_texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrase:
    """A phrase that became more frequent."""

    text: str
    share: float
    """Of the step's completions."""
    share_before: float
    """Of the untrained policy's."""
    score_gain: float | None
    """Mean score of the completions with it, less that of those without; None if all or none have it."""

    @property
    def growth(self) -> float:
        return self.share - self.share_before

    def __str__(self) -> str:
        text = f'"{self.text}" is in {self.share:.0%} of the completions (before: {self.share_before:.0%})'
        return text if self.score_gain is None else f"{text}, which score {self.score_gain:+.2f}"


def count_phrases(profiles: Sequence[Profile]) -> PhraseCounts:
    counts: Counter[str] = Counter()
    for profile in profiles:
        counts.update(profile.phrases)
    return PhraseCounts(counts=counts, num_texts=len(profiles))


def phrase_growth(now: PhraseCounts, before: PhraseCounts) -> float:
    """Largest growth of the share of completions that have a phrase, among the phrases that were rare."""
    return max((growth for growth, _ in _grown(now, before)), default=0.0)


def grown_phrases(profiles: Sequence[Profile], before: PhraseCounts) -> list[Phrase]:
    """The phrases that grew most, none of which is part of another; the longest of those that grew alike."""
    grown = _grown(count_phrases(profiles), before)
    ranked = sorted(grown, key=lambda item: (-item[0], -item[1].count(" "), item[1]))
    shown: list[str] = []
    for _, phrase in ranked:
        if len(shown) == NUM_SHOWN:
            break
        if not any(f" {phrase} " in f" {other} " or f" {other} " in f" {phrase} " for other in shown):
            shown.append(phrase)
    return [_phrase(text, profiles, before) for text in shown]


def _grown(now: PhraseCounts, before: PhraseCounts) -> list[tuple[float, str]]:
    return [
        (growth, phrase)
        for phrase, count in now.counts.items()
        if (share_before := before.share(phrase)) <= LARGEST_SHARE_BEFORE
        and (growth := count / now.num_texts - share_before) > 0
    ]


def _phrase(text: str, profiles: Sequence[Profile], before: PhraseCounts) -> Phrase:
    having = [profile.sample.score for profile in profiles if text in profile.phrases]
    others = [profile.sample.score for profile in profiles if text not in profile.phrases]
    return Phrase(
        text=text,
        share=len(having) / len(profiles),
        share_before=before.share(text),
        score_gain=statistics.fmean(having) - statistics.fmean(others) if having and others else None,
    )
