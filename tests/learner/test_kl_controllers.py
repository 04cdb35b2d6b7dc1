"""KL coefficients against arithmetic, and in closed loop with a policy that answers to them."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.config import KLConfig
from learner.kl_controllers import (
    AdaptiveKLController,
    BudgetKLController,
    FixedKLController,
    KLController,
    make_kl_controller,
)

CONTROLLERS: tuple[Callable[[], KLController], ...] = (
    lambda: FixedKLController(0.3),
    lambda: AdaptiveKLController(0.3, target=5, horizon=100),
    lambda: BudgetKLController(0.3, budget=5),
)


def test_adaptive_controller_by_hand() -> None:
    controller = AdaptiveKLController(0.1, target=6.0, horizon=1000)
    # KL 6.6: e = 0.1; 100 sequences: factor 1 + 0.1 * 100 / 1000 = 1.01
    controller.update(6.6, num_sequences=100)
    assert controller.kl_coef == pytest.approx(0.101)
    # KL 60: e = 9, clipped to 0.2: factor 1.02.  KL 0: e = -1, clipped to -0.2: factor 0.98
    controller.update(60.0, num_sequences=100)
    assert controller.kl_coef == pytest.approx(0.101 * 1.02)
    controller.update(0.0, num_sequences=100)
    assert controller.kl_coef == pytest.approx(0.101 * 1.02 * 0.98)


@settings(deadline=None)
@given(st.floats(-100, 100), st.floats(0.1, 50), st.integers(1, 256), st.floats(1e-4, 10))
def test_adaptive_controller_moves_the_right_way_and_stays_positive(
    kl: float, target: float, num_sequences: int, kl_coef: float
) -> None:
    controller = AdaptiveKLController(kl_coef, target=target, horizon=256)
    controller.update(kl, num_sequences=num_sequences)
    assert controller.kl_coef > 0
    assert (controller.kl_coef >= kl_coef) if kl >= target else (controller.kl_coef <= kl_coef)
    assert 0.8 * kl_coef * 0.999 <= controller.kl_coef <= 1.2 * kl_coef * 1.001


def test_adaptive_controller_holds_its_target_in_closed_loop() -> None:
    """A policy whose KL falls as the penalty rises, KL = 1 / kl_coef, ends at the target."""
    controller = AdaptiveKLController(5.0, target=4.0, horizon=320)
    for _ in range(300):
        controller.update(1 / controller.kl_coef, num_sequences=32)
    assert 1 / controller.kl_coef == pytest.approx(4.0, rel=1e-3)


def test_controllers_resume() -> None:
    for fresh in CONTROLLERS:
        controller, resumed = fresh(), fresh()
        controller.update(50.0, num_sequences=10)
        resumed.load(controller.state())
        for one in (controller, resumed):
            one.update(1.0, num_sequences=10)
        assert controller.kl_coef == resumed.kl_coef
    assert FixedKLController(0.3).kl_coef == 0.3


def test_budget_controller_by_hand() -> None:
    controller = BudgetKLController(0.1, budget=10.0)
    # KL 0, then 5: e = -1, -0.5. 0.3 e + change of e = -0.3 + 0 < 0, then -0.15 + 0.5 = 0.35: e^0.35 = 1.419068
    controller.update(0.0, num_sequences=64)
    assert controller.kl_coef == 0.1  # never below the first
    controller.update(5.0, num_sequences=64)
    assert controller.kl_coef == pytest.approx(0.1419068)
    # KL 12: e = 0.2: 0.06 + 0.7 = 0.76: e^0.76 = 2.138276
    controller.update(12.0, num_sequences=64)
    assert controller.kl_coef == pytest.approx(0.1419068 * 2.138276)
    # KL 12 again: the KL does not rise, 0.06 alone: e^0.06 = 1.061837
    controller.update(12.0, num_sequences=64)
    assert controller.kl_coef == pytest.approx(0.1419068 * 2.138276 * 1.061837)


@pytest.mark.parametrize("speed", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_budget_is_spent_and_hardly_passed(speed: float, noise: float) -> None:
    """A policy that goes a part of the way, each step, to the KL at which reward and penalty balance: 2 / kl_coef,
    which is 20 nats for the first coefficient. With that one fixed, it goes far beyond the budget of 7."""

    def kls_of(controller: KLController) -> list[float]:
        draw, kl, kls = random.Random(0), 0.0, []
        for _ in range(80):
            kl += speed * (2 / controller.kl_coef - kl)
            kls.append(kl)
            controller.update(kl * (1 + draw.gauss(0, noise)), num_sequences=64)
        return kls

    held = kls_of(BudgetKLController(0.1, budget=7.0))
    assert max(held) < 7.0 * 1.3
    assert sum(held[-20:]) / 20 == pytest.approx(7.0, rel=0.05)
    assert max(kls_of(FixedKLController(0.1))) > 19


def test_a_budget_that_is_not_reached_costs_nothing() -> None:
    controller = BudgetKLController(0.1, budget=7.0)
    for kl in (0.0, 0.5, 1.0, 1.4, 1.7, 1.9, 2.0, 2.0):
        controller.update(kl, num_sequences=64)
    assert controller.kl_coef == 0.1


def test_a_kl_that_explodes_raises_the_coefficient_by_a_bounded_factor() -> None:
    controller = BudgetKLController(0.1, budget=7.0)
    controller.update(1e9, num_sequences=64)
    assert controller.kl_coef == pytest.approx(0.1 * math.exp(0.3 + 2))


def test_a_coefficient_that_somebody_sets_is_where_the_controller_goes_on() -> None:
    for fresh in CONTROLLERS:
        controller = fresh()
        controller.update(4.0, num_sequences=10)
        controller.set_coef(0.7)
        assert controller.kl_coef == 0.7


def test_a_budget_is_kept_from_the_coefficient_that_was_set_also_after_a_checkpoint() -> None:
    controller, resumed = (BudgetKLController(0.1, budget=10.0) for _ in range(2))
    controller.set_coef(0.02)
    resumed.load(controller.state())
    for one in (controller, resumed):
        one.update(0.0, num_sequences=64)
        assert one.kl_coef == 0.02, "far below the budget: as it was set"
        # KL 12: e from -1 to 0.2: 0.06 + 1.2 = 1.26: e^1.26 = 3.525421
        one.update(12.0, num_sequences=64)
        assert one.kl_coef == pytest.approx(0.02 * 3.525421)
        for _ in range(9):
            one.update(0.0, num_sequences=64)
        assert one.kl_coef == 0.02


def test_the_recipe_chooses() -> None:
    assert make_kl_controller(KLConfig(kl_coef=0.2)).target is None
    assert isinstance(
        make_kl_controller(KLConfig(controller="adaptive", kl_target=3.0)), AdaptiveKLController
    )
    budget = make_kl_controller(KLConfig(controller="budget", kl_target=3.0))
    assert isinstance(budget, BudgetKLController)
    assert budget.target == 3.0


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="must start above 0"):
        AdaptiveKLController(0.0, target=1, horizon=10)
    with pytest.raises(ValueError, match="target"):
        AdaptiveKLController(0.1, target=0, horizon=10)
    with pytest.raises(ValueError, match="horizon"):
        AdaptiveKLController(0.1, target=1, horizon=0)
    with pytest.raises(ValueError, match="set it above 200"):
        AdaptiveKLController(0.1, target=1, horizon=200).update(1.0, num_sequences=1000)
    with pytest.raises(ValueError, match="must start above 0"):
        BudgetKLController(0.0, budget=1)
    with pytest.raises(ValueError, match="budget"):
        BudgetKLController(0.1, budget=0)
    for controller in (AdaptiveKLController(0.1, target=1, horizon=10), BudgetKLController(0.1, budget=1)):
        with pytest.raises(ValueError, match="diverged"):
            controller.update(math.nan, num_sequences=1)
    with pytest.raises(ValueError, match="finite positive"):
        FixedKLController(-0.1)
