"""The alarm: every step's completions against the untrained policy's. It audits; it is no oracle."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from core.messages import RolloutGroup
from orchestration.alarm.baseline import Baseline, baseline_of_folder
from orchestration.alarm.config import AlarmConfig
from orchestration.alarm.evidence import evidence
from orchestration.alarm.profiles import Profile, profiles_of
from orchestration.alarm.samples import Sample, samples_of
from orchestration.alarm.signals import Habits, measure
from orchestration.alarm.signs import SIGNS, Sign
from orchestration.alarm.trends import trends_of
from orchestration.recipe.config import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A signal was beyond its limits for as many steps in a row as the recipe has patience for."""

    signal: str
    value: float
    baseline: float
    """Its mean under the untrained policy."""
    deviation: float
    """In standard deviations of a step's figure."""
    sentence: str
    """What is wrong, in plain words, with the phrases or the start of a completion that show it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a step's completions look like."""

    record: dict[str, float]
    """`signal_<name>`, `deviation_<name>` and `raised_<name>` (1: it is, or still is), for the step's record. What
    cannot be measured is not in it."""
    alarms: list[Alarm]
    """Those raised in this step. A signal that stays beyond its limits raises none again."""
    is_in_doubt: bool = False
    """Whether a signal is beyond its limits, for fewer steps than there is patience for: the next ones decide."""


class Monitor:
    """Watches one run, whose steps hold completions of its policy (not texts of a dataset):

    monitor = monitor_of(recipe, folder)
    monitor.resume(records)                 # of a resumed run; all of the monitor's state is in them
    observation = monitor.step(groups)      # each step, in its order; seconds at the first, then half of one
    """

    def __init__(self, config: AlarmConfig, find_baseline: Callable[[], Baseline]) -> None:
        self._config = config
        self._find_baseline = find_baseline
        self._history: list[Mapping[str, Any]] = []

    def resume(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Go on after the step of the last of these records, and forget any other."""
        self._history = list(records)

    def step(self, groups: Sequence[RolloutGroup]) -> Observation:
        """Measure a step's completions, after they have been written to the run folder."""
        return self.look(samples_of(groups))

    def look(self, samples: Sequence[Sample]) -> Observation:
        """As `step`, of completions from anywhere."""
        profiles, baseline = profiles_of(samples), self.baseline
        record = {f"signal_{name}": value for name, value in measure(profiles, baseline.habits).items()}
        self._history.append(record)
        kl_nats = statistics.fmean(sample.kl_nats for sample in samples)
        before = self._history[-2] if len(self._history) > 1 else {}
        trends = trends_of(self._history, kl_nats, baseline.spreads)
        record |= {f"signal_{name}": value for name, (value, _) in trends.items()}
        spreads = baseline.spreads | {name: spread for name, (_, spread) in trends.items()}
        alarms, is_in_doubt = [], False
        for name, sign in SIGNS.items():
            if f"signal_{name}" in record and name in spreads and sign.can_be_told(spreads[name]):
                record[f"deviation_{name}"] = sign.deviation(record[f"signal_{name}"], spreads[name])
                num_beyond = self._num_beyond(sign, spreads[name].mean)
                was_raised = before.get(f"raised_{name}", 0.0) == 1.0
                is_raised = num_beyond >= self._config.patience_steps or (was_raised and num_beyond > 0)
                is_in_doubt |= num_beyond > 0 and not is_raised
                record[f"raised_{name}"] = float(is_raised)
                if is_raised and not was_raised:
                    alarms.append(_alarm(sign, record, spreads[name].mean, profiles, baseline.habits))
        return Observation(record=record, alarms=alarms, is_in_doubt=is_in_doubt)

    def _num_beyond(self, sign: Sign, mean: float) -> int:
        """For how many steps in a row, up to the last, a signal has been beyond its limits; as many as there is
        patience for stand for all numbers above it."""
        latest = reversed(self._history[-self._config.patience_steps :])
        return sum(1 for _ in takewhile(lambda record: self._is_beyond(sign, mean, record), latest))

    def _is_beyond(self, sign: Sign, mean: float, record: Mapping[str, Any]) -> bool:
        limit: float | None = getattr(self._config.limits, sign.name)
        if limit is None or f"deviation_{sign.name}" not in record:
            return False
        change = sign.change(record[f"signal_{sign.name}"], mean)
        deviation: float = record[f"deviation_{sign.name}"]
        return change >= limit and abs(deviation) >= self._config.deviations

    @cached_property
    def baseline(self) -> Baseline:
        """Found at its first use, when the files that it is made of are there."""
        return self._find_baseline()


def monitor_of(recipe: Recipe, folder: Path) -> Monitor:
    """The monitor of the run in a folder."""
    return Monitor(recipe.alarm, lambda: baseline_of_folder(folder, gold_of(recipe)))


def gold_of(recipe: Recipe) -> list[str]:
    """The rewards that are recorded and not trained on."""
    return [reward.name for reward in recipe.rewards if reward.weight == 0]


def _alarm(
    sign: Sign, record: Mapping[str, float], mean: float, profiles: Sequence[Profile], habits: Habits
) -> Alarm:
    value = record[f"signal_{sign.name}"]
    words = sign.words.format(value=value, before=mean)
    return Alarm(
        signal=sign.name,
        value=value,
        baseline=mean,
        deviation=record[f"deviation_{sign.name}"],
        sentence=f"{words}. {evidence(sign.name, profiles, habits)}",
    )
