"""Signals that look at more than the completions of one step: the price of the reward, and where gold is going.

Gao et al. 2023 (arXiv:2210.10760): the gold reward first rises with the KL from the reference and then falls, while
the reward that is trained on goes on rising.
"""

import math
from collections.abc import Mapping, Sequence

from orchestration.alarm.baseline import Spread

LEAST_KL_NATS = 1.0
"""Below it, what a nat has bought is mostly noise."""
ORDINARY_GAIN = 0.35
"""Gain of the score, in standard deviations, per root of a nat: runs of the shipped recipes end at 0.28 to 0.7."""
WINDOW_STEPS = 3
"""That gold is averaged over before it is compared."""


def trends_of(
    history: Sequence[Mapping[str, float]], kl_nats: float, spreads: Mapping[str, Spread]
) -> dict[str, tuple[float, Spread]]:
    """Each trend that can be told, and what it would be in an ordinary run; the present step is the last."""
    found: dict[str, tuple[float, Spread]] = {}
    gain, fall = history[-1].get("signal_score_gain"), gold_drawdown(history)
    if gain is not None and kl_nats >= LEAST_KL_NATS:
        ordinary = Spread(mean=ORDINARY_GAIN, std=spreads["score_gain"].std / math.sqrt(kl_nats))
        found["gain_per_sqrt_kl"] = (gain_per_sqrt_kl(gain, kl_nats), ordinary)
    if fall is not None:
        steady = Spread(mean=0.0, std=spreads["gold_gain"].std * math.sqrt(2 / WINDOW_STEPS))
        found["gold_drawdown"] = (fall, steady)
    return found


def gain_per_sqrt_kl(score_gain: float, kl_nats: float) -> float:
    """What the KL has bought: the score's gain over the square root of the KL, with which it grows at first."""
    return score_gain / math.sqrt(kl_nats)


def gold_drawdown(history: Sequence[Mapping[str, float]]) -> float | None:
    """How far gold, averaged over the last steps, is below its best of the times when the score was no higher than
    now; 0 if it is not, None before there are two windows to compare."""
    pairs = [(step["signal_gold_gain"], step["signal_score_gain"]) for step in history if _knows_gold(step)]
    windows = [pairs[end - WINDOW_STEPS : end] for end in range(WINDOW_STEPS, len(pairs) + 1)]
    if len(windows) <= WINDOW_STEPS:
        return None
    means = [
        tuple(math.fsum(values) / WINDOW_STEPS for values in zip(*window, strict=True)) for window in windows
    ]
    gold_now, score_now = means[-1]
    falls = [gold - gold_now for gold, score in means[:-WINDOW_STEPS] if score <= score_now]
    return max(0.0, *falls) if falls else 0.0


def _knows_gold(step: Mapping[str, float]) -> bool:
    return "signal_gold_gain" in step and "signal_score_gain" in step
