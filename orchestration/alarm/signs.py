"""When a signal is a sign of over-optimization: in which direction, how far, and what that means in plain words.

It must be beyond both limits: without the one on deviations chance would be flagged, without the one on the change
every run that learns anything would be.
"""

from dataclasses import dataclass

from orchestration.alarm.baseline import Spread
from orchestration.alarm.config import AlarmLimits

MOST_DEVIATIONS = 20
"""That a change as large as its default limit counts for. A signal that is 0 in all of the untrained policy's
completions has no spread there, and one stray completion is not infinitely far away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """How to read a signal."""

    name: str
    """Also that of its limit."""
    direction: int
    """1: rising is a bad sign; -1: falling; 0: both."""
    relative: bool = False
    """Its limit is a share of the baseline."""
    words: str
    """With the places `value` and `before`."""

    def can_be_told(self, spread: Spread) -> bool:
        """There is no share of a baseline that is 0, such as the spread of scores that are all the same."""
        return self._unit(spread.mean) > 0

    def deviation(self, value: float, spread: Spread) -> float:
        """Distance from the untrained policy, in standard deviations of a step's figure."""
        limit: float = AlarmLimits.model_fields[self.name].default
        least_std = limit * self._unit(spread.mean) / MOST_DEVIATIONS
        return (value - spread.mean) / max(spread.std, least_std)

    def change(self, value: float, mean: float) -> float:
        """How far a value is from the untrained policy's mean towards the bad, in the unit of its limit."""
        change = (value - mean) / self._unit(mean)
        return change * self.direction if self.direction else abs(change)

    def _unit(self, mean: float) -> float:
        return abs(mean) if self.relative else 1.0


_SIGNS = (
    Sign(
        name="repetition",
        direction=1,
        words="completions repeat themselves, in {value:.0%} of their runs of three words (before: {before:.0%})",
    ),
    Sign(
        name="compression",
        direction=-1,
        words="the texts are all alike: compressed, they take {value:.0%} of their size (before: {before:.0%})",
    ),
    Sign(
        name="non_alphabetic",
        direction=1,
        words="{value:.0%} of the characters are no letters (before: {before:.0%})",
    ),
    Sign(
        name="unusual_characters",
        direction=1,
        words="{value:.1%} of the characters are control characters or of other scripts (before: {before:.1%})",
    ),
    Sign(
        name="language_switch",
        direction=1,
        words="{value:.0%} of the completions are in another language (before: {before:.0%})",
    ),
    Sign(
        name="length",
        direction=0,
        relative=True,
        words="completions have {value:.1f} tokens (before: {before:.1f})",
    ),
    Sign(
        name="distinct_2",
        direction=-1,
        words="variety is lost: of 200 pairs of words, {value:.0%} are different ones (before: {before:.0%})",
    ),
    Sign(
        name="self_overlap",
        direction=1,
        words="different prompts get the same words: a pair of words is in {value:.1%} of the other completions "
        "(before: {before:.1%})",
    ),
    Sign(
        name="phrase_growth",
        direction=1,
        words="a phrase spreads, to {value:.0%} more of the completions (by chance: {before:.0%})",
    ),
    Sign(
        name="reward_length",
        direction=1,
        words="longer is better: score and length have a correlation of {value:.2f} (before: {before:.2f})",
    ),
    Sign(
        name="score_std",
        direction=-1,
        relative=True,
        words="the completions score alike, with a standard deviation of {value:.2g} (before: {before:.2g})",
    ),
    Sign(
        name="reference_nll",
        direction=1,
        words="the reference finds the texts odd: {value:.2f} nats a token (before: {before:.2f})",
    ),
    Sign(
        name="kl_per_token",
        direction=1,
        words="the policy is far from the reference: {value:.2f} nats of KL a token (before: {before:.2f})",
    ),
    Sign(
        name="gold_correlation",
        direction=-1,
        words="the score no longer agrees with gold: a correlation of {value:.2f} (before: {before:.2f})",
    ),
    Sign(
        name="gold_gain",
        direction=-1,
        words="gold is worse than before training, by {value:+.2f} standard deviations",
    ),
    Sign(
        name="gold_drawdown",
        direction=1,
        words="gold has fallen by {value:.2f} standard deviations from its best, and the score has not",
    ),
    Sign(
        name="gain_per_sqrt_kl",
        direction=-1,
        words="the KL buys nothing: {value:.2f} deviations of score per root of a nat (ordinary: {before})",
    ),
)
SIGNS = {sign.name: sign for sign in _SIGNS}
"""By signal, in the order in which they are shown."""
