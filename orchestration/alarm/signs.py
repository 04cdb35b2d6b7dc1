"""When a signal is a sign of over-optimization: in which direction, how far, and what that means in plain words.

Both must be beyond their limits: the deviation, or chance would be flagged, and the change, or every run that learns
anything would be. The limits on changes are set by 30 ordinary runs of the shipped recipes (docs/alarm.md): at least
half as much again as the largest change that lasted two steps there.
"""

from dataclasses import dataclass

from orchestration.alarm.baseline import Spread
from orchestration.alarm.config import SignalName

MOST_DEVIATIONS = 20
"""A change at its limit counts for at most so many: a signal that is 0 in all of the untrained policy's completions has no
spread there, and one stray completion is not infinitely far away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """What makes an alarm of a signal."""

    direction: int
    """1: rising is a bad sign; -1: falling; 0: both."""
    change: float
    """Least change."""
    relative: bool = False
    """The change is a share of the baseline."""
    words: str
    """With the places `value` and `before`."""

    def deviation(self, value: float, spread: Spread) -> float:
        """Distance from the untrained policy, in standard deviations of a step's figure."""
        return (value - spread.mean) / max(spread.std, self.change * self._unit(spread.mean) / MOST_DEVIATIONS)

    def is_beyond(self, value: float, mean: float, deviation: float, *, change: float, deviations: float) -> bool:
        """Whether a value is beyond both limits; `mean` is the untrained policy's."""
        stray = (value - mean) * self.direction if self.direction else abs(value - mean)
        return stray >= change * self._unit(mean) and abs(deviation) >= deviations

    def _unit(self, mean: float) -> float:
        return abs(mean) if self.relative else 1.0


SIGNS: dict[SignalName, Sign] = {
    "repetition": Sign(
        direction=1,
        change=0.1,
        words="completions repeat themselves: {value:.0%} of the runs of three words (before: {before:.0%})",
    ),
    "compression": Sign(
        direction=-1,
        change=0.12,
        words="the texts say ever the same: compressed, they take {value:.0%} of their size (before: {before:.0%})",
    ),
    "non_alphabetic": Sign(
        direction=1,
        change=0.1,
        words="{value:.0%} of the characters are no letters (before: {before:.0%})",
    ),
    "unusual_characters": Sign(
        direction=1,
        change=0.03,
        words="{value:.1%} of the characters are control characters or of other scripts (before: {before:.1%})",
    ),
    "language_switch": Sign(
        direction=1,
        change=0.1,
        words="{value:.0%} of the completions are in another language (before: {before:.0%})",
    ),
    "length": Sign(
        direction=0,
        change=0.5,
        relative=True,
        words="completions have {value:.1f} tokens (before: {before:.1f})",
    ),
    "distinct_2": Sign(
        direction=-1,
        change=0.08,
        words="completions lose variety: {value:.0%} of 200 pairs of words are different ones (before: {before:.0%})",
    ),
    "self_overlap": Sign(
        direction=1,
        change=0.03,
        words="different prompts get the same words: {value:.1%} of a completion's pairs of words are in another one "
        "(before: {before:.1%})",
    ),
    "phrase_growth": Sign(
        direction=1,
        change=0.25,
        words="a phrase spreads: {value:.0%} more of the completions have it (by chance: {before:.0%})",
    ),
    "reward_length": Sign(
        direction=1,
        change=0.6,
        words="longer is better: the score's correlation with the length is {value:.2f} (before: {before:.2f})",
    ),
    "score_std": Sign(
        direction=-1,
        change=0.7,
        relative=True,
        words="the completions score alike: a standard deviation of {value:.2g} (before: {before:.2g})",
    ),
    "reference_nll": Sign(
        direction=1,
        change=1.5,
        words="the reference finds the texts odd: {value:.2f} nats a token (before: {before:.2f})",
    ),
    "gold_correlation": Sign(
        direction=-1,
        change=0.6,
        words="the score no longer agrees with the gold reward: a correlation of {value:.2f} (before: {before:.2f})",
    ),
    "gold_gain": Sign(
        direction=-1,
        change=0.5,
        words="the gold reward is {value:+.2f} standard deviations from the untrained policy's",
    ),
    "gold_drawdown": Sign(
        direction=1,
        change=0.5,
        words="the gold reward has fallen by {value:.2f} standard deviations from its best, and the score has not",
    ),
    "gain_per_sqrt_kl": Sign(
        direction=-1,
        change=0.25,
        words="the KL buys nothing: {value:.2f} standard deviations of score for its square root (ordinary: {before:.2f})",
    ),
}
"""By signal, in the order in which they are shown."""

