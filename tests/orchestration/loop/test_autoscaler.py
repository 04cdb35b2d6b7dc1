"""Decisions by hand, and a made-up run in which the number settles."""

import pytest

from actors.autoscale_config import AutoscaleConfig
from orchestration.loop.autoscaler import Autoscaler

CONFIG = AutoscaleConfig(min_workers=1, max_workers=10, grow_above=0.5, shrink_below=0.1, window_steps=3)


def decisions(scaler: Autoscaler, *waits: float) -> list[int | None]:
    return [scaler.after_step(wait * 10.0, 10.0) for wait in waits]


def test_it_grows_while_the_learner_waits_and_looks_at_the_effect_first() -> None:
    scaler = Autoscaler(CONFIG, 2)
    assert decisions(scaler, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9) == [None, None, 3, None, None, 4]
    assert scaler.reason == (
        "the learner waited 90% of the last 3 steps for rollouts (grow above 50%, shrink below 10%)"
    )


def test_it_shrinks_while_nobody_waits_for_rollouts() -> None:
    assert decisions(Autoscaler(CONFIG, 8), 0.0, 0.1, 0.05) == [None, None, 6]


def test_one_slow_step_among_others_changes_nothing() -> None:
    assert decisions(Autoscaler(CONFIG, 4), 0.2, 0.9, 0.2, 0.2, 0.9) == [None] * 5


@pytest.mark.parametrize(("size", "wait"), [(10, 1.0), (1, 0.0)])
def test_it_keeps_between_the_bounds(size: int, wait: float) -> None:
    assert decisions(Autoscaler(CONFIG, size), *[wait] * 9) == [None] * 9


def test_a_number_that_somebody_chose_is_where_it_goes_on_from() -> None:
    scaler = Autoscaler(CONFIG, 2)
    decisions(scaler, 0.9, 0.9)
    scaler.set_size(8)
    assert decisions(scaler, 0.9, 0.9, 0.9) == [None, None, 10]


@pytest.mark.parametrize("start", [1, 10])
def test_the_number_settles_where_neither_waits_much(start: int) -> None:
    """Sampling a step takes 20 s for one worker, learning 5 s, at the same time."""
    scaler, size, sizes = Autoscaler(CONFIG, start), start, []
    for _ in range(100):
        rollout_s, learn_s = 20.0 / size, 5.0
        size = scaler.after_step(max(0.0, rollout_s - learn_s), max(rollout_s, learn_s)) or size
        sizes.append(size)
    assert len(set(sizes[-30:])) == 1
    assert 2 <= sizes[-1] <= 5
