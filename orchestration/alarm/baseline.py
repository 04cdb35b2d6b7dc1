"""What every signal is under the untrained policy, and how far a step's figure strays from that by chance.

The completions come from step 1, which policy version 0 sampled, and from the held-out prompts before training.
The steps that are compared with them have other prompts of the same distribution, not the same ones: what a signal
owes to the prompts is in the spread, as far as so few prompts show it. With few prompts a step and many completions
of each, the held-out prompts, of one completion each, make the spread look smaller than it is.

The spread comes from random splits, not from a bootstrap: drawing with replacement puts the same completion into a
step twice, which to the signals of diversity looks like a policy that repeats itself. A part as large as a step is
split off at random, by whole prompts, and measured against the rest as a step is against the baseline.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import UserError
from core.sample_files import step_file
from orchestration.alarm.phrases import count_phrases
from orchestration.alarm.profiles import Profile, profiles_of
from orchestration.alarm.samples import Sample, heldout_samples, samples_of_step
from orchestration.alarm.signals import Habits, habits_of, measure
from orchestration.run_folder import BEFORE_FILE

NUM_SPLITS = 60
"""Enough to know a standard deviation to within 9%."""
RAREST_PHRASE = 0.01
"""Share of all completions: of the phrases of a split, a more frequent one grows most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A signal under the untrained policy."""

    mean: float
    std: float
    """Of the difference between a fresh step's figure and the mean, which is of a sample, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The untrained policy, as far as the alarm knows it."""

    habits: Habits
    spreads: dict[str, Spread]
    """By signal; one that cannot be measured on these completions is not in it."""


def baseline_of_folder(folder: Path, gold: Sequence[str]) -> Baseline:
    """From the files of a run, so that a resumed run has the same. Raises `UserError` if one is missing."""
    first_step, heldout = step_file(folder, 1), folder / BEFORE_FILE
    for file in (first_step, heldout):
        if not file.is_file():
            raise UserError(
                f"{file}: missing, and the alarm compares with it; put it back, or set alarm.enabled = false"
            )
    step = samples_of_step(first_step)
    return baseline_of([*step, *heldout_samples(heldout)], gold, step_size=len(step))


def baseline_of(samples: Sequence[Sample], gold: Sequence[str], *, step_size: int) -> Baseline:
    """From completions of the untrained policy; `step_size` of them make a step."""
    profiles = profiles_of(samples)
    habits = habits_of(profiles, gold)
    return Baseline(habits=habits, spreads=spreads_of(profiles, habits, step_size))


def spreads_of(profiles: Sequence[Profile], habits: Habits, step_size: int) -> dict[str, Spread]:
    """Mean and standard deviation of every signal over random splits of the completions."""
    groups = _by_prompt(_with_frequent_phrases(profiles))
    if len(groups) < 2:
        raise UserError(
            "the alarm cannot tell how much completions vary from those of one prompt: use two or more"
        )
    random = np.random.default_rng(0)
    values: dict[str, list[float]] = {}
    strays: dict[str, list[float]] = {}
    for _ in range(NUM_SPLITS):
        part, rest = _split([groups[index] for index in random.permutation(len(groups))], step_size)
        figures = measure(part, replace(habits, phrases=count_phrases(rest)))
        for name, value in figures.items():
            values.setdefault(name, []).append(value)
            strays.setdefault(name, []).append(_scale(len(part), len(profiles), step_size))
    return {name: _spread(np.array(values[name]), np.array(strays[name])) for name in values}


def _by_prompt(profiles: Sequence[Profile]) -> list[list[Profile]]:
    groups: dict[str, list[Profile]] = {}
    for profile in profiles:
        groups.setdefault(profile.sample.group, []).append(profile)
    return list(groups.values())


def _with_frequent_phrases(profiles: Sequence[Profile]) -> list[Profile]:
    """The same completions, less the many phrases that hardly any of them has: it saves most of the time."""
    counts, least = count_phrases(profiles).counts, max(2, RAREST_PHRASE * len(profiles))
    frequent = frozenset(phrase for phrase, count in counts.items() if count >= least)
    return [replace(profile, phrases=profile.phrases & frequent) for profile in profiles]


def _split(groups: Sequence[list[Profile]], step_size: int) -> tuple[list[Profile], list[Profile]]:
    """The first groups, together as large as a step or as half of all, and the others."""
    size = min(step_size, sum(map(len, groups)) // 2)
    ends = list(accumulate(map(len, groups)))
    num_groups = min(bisect_left(ends, size) + 1, len(groups) - 1)
    everything = [profile for group in groups for profile in group]
    return everything[: ends[num_groups - 1]], everything[ends[num_groups - 1] :]


def _scale(part: int, total: int, step_size: int) -> float:
    """From the spread of parts to that of fresh steps. A mean over a part strays from the mean of all completions
    with the variance s^2 (1/part - 1/total), that of a fresh step with s^2 (1/step_size + 1/total)."""
    return math.sqrt((1 / step_size + 1 / total) / (1 / part - 1 / total))


def _spread(values: NDArray[np.float64], scales: NDArray[np.float64]) -> Spread:
    mean = float(values.mean())
    strays = (values - mean) * scales
    return Spread(mean=mean, std=math.sqrt(float((strays**2).sum()) / max(1, len(strays) - 1)))
