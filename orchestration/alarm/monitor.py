"""The alarm: every step's completions against the untrained policy's. It audits; it is no oracle."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from core.messages import RolloutGroup
from orchestration.alarm.baseline import Baseline
from orchestration.alarm.config import AlarmConfig, SignalName
from orchestration.alarm.evidence import evidence
from orchestration.alarm.profiles import Profile, profiles_of
from orchestration.alarm.samples import Sample, samples_of
from orchestration.alarm.signals import Habits, measure
from orchestration.alarm.signs import SIGNS
from orchestration.alarm.trends import trends_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A signal was beyond its limits for as many steps in a row as the recipe has patience for."""

    signal: SignalName
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
    """`signal_<name>` and `deviation_<name>`, for the step's record. What cannot be measured is not in it."""
    alarms: list[Alarm]
    """Those raised in this step. A signal that stays beyond its limits raises none again."""


class Monitor:
    """Watches one run:

    monitor = Monitor(recipe.alarm, lambda: baseline_of_folder(folder, gold))
    observation = monitor.step(groups)      # each step, in its order; a second or so at the first, then less

    All of its state is in the records of the steps, so `resume(records)` makes it the monitor of a resumed run.
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
        trends = trends_of(self._history, kl_nats, baseline.spreads)
        record |= {f"signal_{name}": value for name, (value, _) in trends.items()}
        spreads = baseline.spreads | {name: spread for name, (_, spread) in trends.items()}
        alarms = []
        for name, sign in SIGNS.items():
            if f"signal_{name}" in record and name in spreads:
                record[f"deviation_{name}"] = sign.deviation(record[f"signal_{name}"], spreads[name])
                if self._is_raised(name, spreads[name].mean):
                    alarms.append(_alarm(name, record, spreads[name].mean, profiles, baseline.habits))
        return Observation(record=record, alarms=alarms)

    def _is_raised(self, name: SignalName, mean: float) -> bool:
        """Beyond its limits for just as many steps as there is patience for: not in the step before those."""
        if name in self._config.ignored:
            return False
        patience = self._config.patience_steps
        last = [self._is_beyond(name, mean, record) for record in self._history[-patience - 1 :]]
        return len(last) >= patience and all(last[-patience:]) and not (len(last) > patience and last[0])

    def _is_beyond(self, name: SignalName, mean: float, record: Mapping[str, float]) -> bool:
        if f"deviation_{name}" not in record:
            return False
        return SIGNS[name].is_beyond(
            record[f"signal_{name}"],
            mean,
            record[f"deviation_{name}"],
            change=self._config.changes.get(name, SIGNS[name].change),
            deviations=self._config.deviations,
        )

    @cached_property
    def baseline(self) -> Baseline:
        """Found at its first use, when the files that it is made of are there."""
        return self._find_baseline()


def _alarm(
    name: SignalName, record: Mapping[str, float], mean: float, profiles: Sequence[Profile], habits: Habits
) -> Alarm:
    value = record[f"signal_{name}"]
    words = SIGNS[name].words.format(value=value, before=mean)
    return Alarm(
        signal=name,
        value=value,
        baseline=mean,
        deviation=record[f"deviation_{name}"],
        sentence=f"{words}. {evidence(name, profiles, habits)}",
    )
