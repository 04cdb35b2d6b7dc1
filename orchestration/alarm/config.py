"""The alarm for over-optimization, as a recipe sets it."""

from typing import Annotated, Literal

from pydantic import Field

from core.config import Section

SignalName = Literal[
    "repetition",
    "compression",
    "non_alphabetic",
    "unusual_characters",
    "language_switch",
    "length",
    "distinct_2",
    "self_overlap",
    "phrase_growth",
    "reward_length",
    "score_std",
    "reference_nll",
    "gold_correlation",
    "gold_gain",
    "gold_drawdown",
    "gain_per_sqrt_kl",
]
"""What an alarm can be raised for; docs/alarm.md says what each measures."""


class AlarmConfig(Section):
    """Watches the completions of every step for signs that the policy cheats its reward."""

    enabled: bool = True
    """Measure the signals of every step against the untrained policy."""
    action: Literal["warn", "raise_kl", "pause", "stop"] = "warn"
    """What an alarm does besides being reported: nothing, raise kl_coef, pause the run, or save and stop it."""
    kl_factor: float = Field(default=2.0, gt=1)
    """What kl_coef is multiplied by at every alarm, with action `raise_kl`."""
    patience_steps: int = Field(default=2, ge=1)
    """Steps in a row that a signal must be beyond its limit before there is an alarm."""
    deviations: float = Field(default=4.0, gt=0)
    """Least distance from the untrained policy, in standard deviations of a step's figure."""
    changes: dict[SignalName, Annotated[float, Field(gt=0)]] = {}
    """Least distance from the untrained policy in the signal's own unit, in place of its default."""
    ignored: list[SignalName] = []
    """Signals that are measured and raise no alarm."""
