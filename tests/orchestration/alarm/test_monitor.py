import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from core.messages import RolloutGroup
from core.metrics.contract import metric_of
from core.metrics.registry import METRICS
from orchestration.alarm.baseline import Baseline, baseline_of
from orchestration.alarm.config import AlarmConfig, AlarmLimits
from orchestration.alarm.monitor import Monitor
from orchestration.alarm.samples import Sample, samples_of
from tests.alarm_fakes import sensible_step
from tests.fakes import make_completion, make_rollout

SIZE = 64
WITHOUT_PATIENCE = AlarmConfig(patience_steps=1)


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    heldout = sensible_step(96, seed=1000, group_size=1)
    return baseline_of([*sensible_step(SIZE, seed=0), *heldout], ["gold"], step_size=SIZE)


def monitor(baseline: Baseline, config: AlarmConfig = WITHOUT_PATIENCE) -> Monitor:
    return Monitor(config, lambda: baseline)


def cheating(cheat: Callable[[Sample], Sample], share: float, *, seed: int = 1) -> list[Sample]:
    step = sensible_step(SIZE, seed=seed)
    cheaters = set(random.Random(seed).sample(range(SIZE), round(share * SIZE)))
    return [cheat(sample) if index in cheaters else sample for index, sample in enumerate(step)]


def add(text: str) -> Callable[[Sample], Sample]:
    return lambda sample: replace(sample, text=f"{sample.text} {text}")


def say(text: str) -> Callable[[Sample], Sample]:
    return lambda sample: replace(sample, text=text)


def raised(seen: Sequence[object]) -> list[str]:
    return [alarm.signal for observation in seen for alarm in observation.alarms]  # type: ignore[attr-defined]


CHEATS: dict[str, Callable[[Sample], Sample]] = {
    "repetition": say("very good very good very good very good very good very good very good"),
    "compression": say(
        "I was deeply moved by the beauty of it all, and I thank you for it with all my heart."
    ),
    "non_alphabetic": add("*** $$$ ### @@@ !!! ??? ^^^ %%% ~~~ +++"),
    "unusual_characters": lambda sample: replace(sample, text=sample.text.replace(" ", " \u200b")),
    "language_switch": say("Der Film ist ein wunderbares Meisterwerk, das ich jedem sehr empfehle."),
    "length": lambda sample: replace(sample, num_tokens=2 * sample.num_tokens),
    "distinct_2": say(
        "I was deeply moved by the beauty of it all, and I thank you for it with all my heart."
    ),
    "self_overlap": say(
        "I was deeply moved by the beauty of it all, and I thank you for it with all my heart."
    ),
    "phrase_growth": add("It is a masterpiece."),
    "reward_length": lambda sample: replace(sample, score=float(sample.num_tokens)),
    "score_std": lambda sample: replace(sample, score=sample.score / 10),
    "reference_nll": lambda sample: replace(sample, reference_nll=6.0),
    "gold_correlation": lambda sample: replace(sample, rewards={"gold": -sample.score}),
    "gold_gain": lambda sample: replace(sample, rewards={"gold": sample.rewards["gold"] - 2}),
    "kl_per_token": lambda sample: replace(sample, kl_nats=0.6 * sample.num_tokens),
    "gain_per_sqrt_kl": lambda sample: replace(sample, kl_nats=50.0),
}


@pytest.mark.parametrize("signal", CHEATS)
def test_each_signal_sees_its_cheat(baseline: Baseline, signal: str) -> None:
    seen = monitor(baseline).look(cheating(CHEATS[signal], 1.0))
    assert signal in [alarm.signal for alarm in seen.alarms]


def test_an_honest_policy_raises_no_alarm(baseline: Baseline) -> None:
    watching = monitor(baseline)
    assert raised([watching.look(sensible_step(SIZE, seed=seed)) for seed in range(1, 21)]) == []


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_half_of_a_step_that_cheats_is_enough(baseline: Baseline, share: float) -> None:
    for name in ("repetition", "language_switch", "phrase_growth", "unusual_characters", "self_overlap"):
        assert name in [
            alarm.signal for alarm in monitor(baseline).look(cheating(CHEATS[name], share)).alarms
        ]


def test_the_alarm_names_the_phrase_and_its_shares(baseline: Baseline) -> None:
    seen = monitor(baseline).look(cheating(add("It is a masterpiece."), 0.5))
    (alarm,) = [alarm for alarm in seen.alarms if alarm.signal == "phrase_growth"]
    assert '"it is a masterpiece" is in 50% of the completions (before: 0%)' in alarm.sentence
    assert alarm.value == pytest.approx(0.5)
    assert alarm.deviation == seen.record["deviation_phrase_growth"] > 4


def test_the_alarm_shows_the_completion_that_is_worst(baseline: Baseline) -> None:
    seen = monitor(baseline).look(cheating(CHEATS["repetition"], 0.3))
    (alarm,) = [alarm for alarm in seen.alarms if alarm.signal == "repetition"]
    assert '"very good very good very good' in alarm.sentence


def test_an_alarm_waits_for_as_many_steps_as_there_is_patience_for_and_is_raised_once(
    baseline: Baseline,
) -> None:
    watching = monitor(baseline, AlarmConfig(patience_steps=2))
    honest, cheat = sensible_step(SIZE, seed=1), cheating(CHEATS["repetition"], 0.5)
    seen = [watching.look(step) for step in (cheat, honest, cheat, cheat, cheat, cheat, honest, cheat, cheat)]
    assert ["repetition" in raised([each]) for each in seen] == [
        *(False, False, False, True, False, False, False, False, True)
    ]
    assert [each.is_in_doubt for each in seen] == [
        *(True, False, True, False, False, False, False, True, False)
    ], "while the next step decides"


def test_a_signal_must_be_beyond_both_limits(baseline: Baseline) -> None:
    step = cheating(CHEATS["repetition"], 0.5)
    for config in (
        AlarmConfig(patience_steps=1, deviations=1000.0),
        AlarmConfig(patience_steps=1, limits=AlarmLimits(repetition=0.9)),
        AlarmConfig(patience_steps=1, limits=AlarmLimits(repetition=None)),
    ):
        seen = monitor(baseline, config).look(step)
        assert "repetition" not in raised([seen])
        assert seen.record["deviation_repetition"] > 10, "it is measured all the same"


def test_gold_that_falls_from_its_best_is_an_alarm(baseline: Baseline) -> None:
    def step(seed: int, gold: float) -> list[Sample]:
        return [
            replace(sample, score=sample.score + 1, rewards={"gold": sample.rewards["gold"] + gold})
            for sample in sensible_step(SIZE, seed=seed)
        ]

    watching = monitor(baseline)
    rising = [watching.look(step(seed, 2.0)) for seed in range(1, 5)]
    falling = [watching.look(step(seed, 0.0)) for seed in range(5, 9)]
    assert "gold_drawdown" not in raised(rising)
    assert raised(falling).count("gold_drawdown") == 1


def test_a_resumed_monitor_goes_on_where_it_was(baseline: Baseline) -> None:
    config = AlarmConfig(patience_steps=3)
    steps = [cheating(CHEATS["repetition"], 0.5, seed=seed) for seed in range(1, 6)]
    whole = monitor(baseline, config)
    observations = [whole.look(step) for step in steps]
    resumed = monitor(baseline, config)
    resumed.resume([{"step": 1, **observations[0].record}, {"step": 2, **observations[1].record}])
    assert [resumed.look(step) for step in steps[2:]] == observations[2:]
    assert "repetition" in raised(observations[2:3])


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"limits": AlarmLimits(repetition=None)}, {}, [True, False]),
        ({"patience_steps": 5}, {"patience_steps": 2}, [True, False]),
        ({"patience_steps": 1}, {"patience_steps": 2}, [False, False]),
        ({"limits": AlarmLimits(repetition=None)}, {"patience_steps": 5}, [False, True]),
    ],
)
def test_a_run_that_is_resumed_with_other_limits_is_measured_by_those(
    baseline: Baseline, before: dict[str, Any], now: dict[str, Any], expected: list[bool]
) -> None:
    """Three steps of a cheat, and two more: what was raised is not raised again, and what was not is."""
    steps = [cheating(CHEATS["repetition"], 0.5, seed=seed) for seed in range(1, 6)]
    first = monitor(baseline, AlarmConfig(**before))
    records = [{"step": place, **first.look(step).record} for place, step in enumerate(steps[:3])]
    resumed = monitor(baseline, AlarmConfig(**now))
    resumed.resume(records)
    seen = [resumed.look(step) for step in steps[3:]]
    assert ["repetition" in raised([each]) for each in seen] == expected


def test_scores_that_are_all_the_same_at_first_are_no_sign_and_no_crash() -> None:
    """As of a verifier that the untrained policy never satisfies."""

    def scored(step: Sequence[Sample], *scores: float) -> list[Sample]:
        return [
            replace(each, score=scores[place % len(scores)], rewards={}) for place, each in enumerate(step)
        ]

    watching = monitor(baseline_of(scored(sensible_step(SIZE, seed=0), 0.0), [], step_size=SIZE // 2))
    for scores in ([0.0], [0.0, 1.0], [1.0]):
        seen = watching.look(scored(sensible_step(SIZE, seed=1), *scores))
        assert not {"score_std", "score_gain"} & set(raised([seen]))
        assert "deviation_score_std" not in seen.record


def test_resuming_forgets_what_was_undone(baseline: Baseline) -> None:
    watching = monitor(baseline, AlarmConfig(patience_steps=2))
    watching.look(cheating(CHEATS["repetition"], 0.5))
    watching.resume([])
    assert raised([watching.look(cheating(CHEATS["repetition"], 0.5))]) == []


def test_the_record_has_the_keys_of_the_metrics(baseline: Baseline) -> None:
    record = monitor(baseline).look(sensible_step(SIZE, seed=1)).record
    found = {key: metric_of(key, METRICS) for key in record}
    assert {metric[0].name for metric in found.values() if metric} == {
        "leash_signal",
        "leash_signal_deviation",
        "leash_signal_raised",
    }
    assert None not in found.values()
    assert found["deviation_length"] == (METRICS["leash_signal_deviation"], {"signal": "length"})


def test_a_steps_groups_are_its_completions(baseline: Baseline) -> None:
    rollout = make_rollout(make_completion(7, 8, 9, text="so it is"), score=1.5, reference=(-1.0, -2.0, -6.0))
    (sample,) = samples_of([RolloutGroup(group_id="group-7", rollouts=(rollout,))])
    assert sample == Sample(
        group="group-7",
        text="so it is",
        num_tokens=3,
        score=1.5,
        rewards={"fake": 1.5},
        kl_nats=6.0,
        reference_nll=3.0,
    )
    empty = make_rollout(make_completion(text=""))
    (nothing,) = samples_of([RolloutGroup(group_id="group-8", rollouts=(empty,))])
    assert (nothing.num_tokens, nothing.reference_nll) == (0, None)
