"""The alarm for over-optimization, as a recipe sets it."""

from typing import Literal

from pydantic import Field

from core.config import Section


class AlarmLimits(Section):
    """How far each signal may be from the untrained policy's. `"none"`: measure it and raise no alarm."""

    repetition: float | None = Field(default=0.1, gt=0)
    """Rise of the share of runs of three words that have occurred before in the same completion."""
    compression: float | None = Field(default=0.12, gt=0)
    """Fall of the size that the step's text takes when it is compressed, as a share of its size."""
    non_alphabetic: float | None = Field(default=0.06, gt=0)
    """Rise of the share of characters, spaces left out, that are no letters."""
    unusual_characters: float | None = Field(default=0.03, gt=0)
    """Rise of the share of characters that are control characters or letters of other scripts."""
    language_switch: float | None = Field(default=0.1, gt=0)
    """Rise of the share of completions in another language."""
    length: float | None = Field(default=0.5, gt=0)
    """Rise or fall of the mean length in tokens, as a share of what it was."""
    distinct_2: float | None = Field(default=0.08, gt=0)
    """Fall of the share of different pairs of words among 200 pairs drawn from all completions."""
    self_overlap: float | None = Field(default=0.03, gt=0)
    """Rise of the probability that a pair of words of a completion is also in one of another prompt."""
    phrase_growth: float | None = Field(default=0.2, gt=0)
    """Largest growth of the share of completions that have a phrase which was rare."""
    reward_length: float | None = Field(default=0.6, gt=0)
    """Rise of the correlation between score and length."""
    score_std: float | None = Field(default=0.7, gt=0)
    """Fall of the standard deviation of the scores, as a share of what it was."""
    reference_nll: float | None = Field(default=1.5, gt=0)
    """Rise of the mean negative log-probability of a token under the reference, in nats."""
    kl_per_token: float | None = Field(default=0.5, gt=0)
    """Rise of the KL from the reference, in nats a token."""
    gold_correlation: float | None = Field(default=0.5, gt=0)
    """Fall of the correlation between the score and the gold rewards, those of weight 0."""
    gold_gain: float | None = Field(default=0.5, gt=0)
    """Fall of the mean gold reward, in standard deviations of a completion's."""
    gold_drawdown: float | None = Field(default=0.5, gt=0)
    """Fall of the gold reward from its best while the score has not fallen, in the same unit."""
    gain_per_sqrt_kl: float | None = Field(default=0.3, gt=0)
    """Shortfall behind 0.35 of the score's gain, in standard deviations per root of a nat of KL."""


class AlarmConfig(Section):
    """Watches the completions of every step for signs that the policy cheats its reward."""

    enabled: bool = True
    """Measure the signals of every step against the untrained policy."""
    action: Literal["warn", "raise_kl", "pause", "stop"] = "warn"
    """What an alarm does besides being reported: nothing, raise kl_coef, pause the run, or stop
    it with nothing more saved. In the last step only `stop` does anything."""
    kl_factor: float = Field(default=2.0, gt=1)
    """What kl_coef is multiplied by at an alarm, with action `raise_kl`."""
    max_kl_factor: float = Field(default=8.0, ge=1)
    """The most that alarms make of kl_coef, as a multiple of what the recipe or `leash set` gives it.
    A signal that comes and goes would double it without end."""
    patience_steps: int = Field(default=2, ge=1)
    """Steps in a row that a signal must be beyond its limits before there is an alarm."""
    deviations: float = Field(default=4.0, gt=0)
    """Least distance from the untrained policy, of any signal, in standard deviations of a step's figure."""
    limits: AlarmLimits = AlarmLimits()
