"""KL of each step -> the coefficient of its penalty in the next: fixed, adaptive, or within a budget."""

import math
from typing import Protocol

from learner.config import KLConfig

ERROR_CLIP = 0.2
"""Bound on the relative error that the adaptive controller acts on (arXiv:1909.08593, sec. 2.2)."""
PROPORTIONAL_GAIN = 1.0
"""Of the budget. A KL that answers within a step by 1 / kl_coef would swing from 2 on."""
INTEGRAL_GAIN = 0.3
"""Of the budget: a tenth too much raises the coefficient by 3 % a step."""
ERROR_LIMIT = 1.0
"""Of the budget: more than twice of it counts as twice, so that one step raises the coefficient at most tenfold."""


class KLController(Protocol):
    """Who sets the coefficient of the KL penalty."""

    kl_coef: float
    """Of the step to come."""
    target: float | None
    """KL that is steered to, or held below, in nats a sequence; None: no KL is."""

    def update(self, kl_nats_per_sequence: float, *, num_sequences: int) -> None:
        """Call once a step with the mean KL of the sequences of that step and their number."""

    def set_coef(self, kl_coef: float) -> None:
        """Go on from this coefficient, as if it were the first one."""

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""

    def load(self, state: dict[str, float]) -> None:
        """Go on from what `state` gave, as if never interrupted."""


def make_kl_controller(kl: KLConfig) -> KLController:
    """The one that the recipe asks for."""
    if kl.controller == "fixed":
        return FixedKLController(kl.kl_coef)
    assert kl.kl_target is not None, "checked with the recipe"
    if kl.controller == "budget":
        return BudgetKLController(kl.kl_coef, budget=kl.kl_target)
    return AdaptiveKLController(kl.kl_coef, target=kl.kl_target, horizon=kl.horizon)


class FixedKLController:
    """A KL coefficient that stays."""

    def __init__(self, kl_coef: float) -> None:
        if not (math.isfinite(kl_coef) and kl_coef >= 0):
            raise ValueError(f"kl_coef is {kl_coef}; set 0 for no penalty, or a finite positive number")
        self.kl_coef = float(kl_coef)
        self.target: float | None = None

    def update(self, kl_nats_per_sequence: float, *, num_sequences: int) -> None:
        """Nothing to learn."""

    def set_coef(self, kl_coef: float) -> None:
        self.kl_coef = kl_coef

    def state(self) -> dict[str, float]:
        return {"kl_coef": self.kl_coef}

    def load(self, state: dict[str, float]) -> None:
        self.kl_coef = state["kl_coef"]


class AdaptiveKLController:
    """A KL coefficient that steers towards a KL of `target` nats a sequence (arXiv:1909.08593, sec. 2.2).

        e = clip(kl / target - 1, -0.2, 0.2);  kl_coef *= 1 + e * num_sequences / horizon

    so that `horizon` is in sequences, and the paper's K_beta = 0.1 is a horizon of ten batches.
    Its state is the coefficient alone: target and horizon come from the configuration, also on resume.
    """

    def __init__(self, kl_coef: float, *, target: float, horizon: float) -> None:
        if not (math.isfinite(kl_coef) and kl_coef > 0):
            raise ValueError(f"kl_coef is {kl_coef}; an adaptive one must start above 0 (such as 0.05)")
        if not target > 0:
            raise ValueError(f"target is {target}; set the KL to steer towards, in nats a sequence, above 0")
        if not horizon > 0:
            raise ValueError(f"horizon is {horizon}; set it in sequences, above 0 (such as 10 batches)")
        self.kl_coef = float(kl_coef)
        self.target: float | None = target
        self.horizon = horizon

    def update(self, kl_nats_per_sequence: float, *, num_sequences: int) -> None:
        """Call once a step with the mean KL of the sequences of that step and their number."""
        _require_finite(kl_nats_per_sequence)
        assert self.target is not None, "only the fixed controller has none"
        if ERROR_CLIP * num_sequences >= self.horizon:
            raise ValueError(
                f"horizon of {self.horizon} sequences is too short for {num_sequences} a step: kl_coef could "
                f"reach 0; set it above {ERROR_CLIP * num_sequences:g}, better to {10 * num_sequences}"
            )
        error = min(max(kl_nats_per_sequence / self.target - 1, -ERROR_CLIP), ERROR_CLIP)
        self.kl_coef *= 1 + error * num_sequences / self.horizon

    def set_coef(self, kl_coef: float) -> None:
        self.kl_coef = kl_coef

    def state(self) -> dict[str, float]:
        return {"kl_coef": self.kl_coef}

    def load(self, state: dict[str, float]) -> None:
        self.kl_coef = state["kl_coef"]


class BudgetKLController:
    """A KL coefficient that lets the KL rise to `budget` nats a sequence and holds it there.

    With e = min(kl / budget - 1, 1), once a step:

        kl_coef *= exp(0.3 e + (e - e_before)), never below the first one, or the one that was set

    A proportional and an integral term on a bound that may be reached but not passed, after PID Lagrangian methods
    (arXiv:2007.03964, algorithm 2), in the velocity form and on the coefficient's logarithm: a proportional term
    sees a KL that rises fast before it is there, and nothing winds up while the KL is below the budget.
    """

    def __init__(self, kl_coef: float, *, budget: float) -> None:
        if not (math.isfinite(kl_coef) and kl_coef > 0):
            raise ValueError(
                f"kl_coef is {kl_coef}; one that holds a budget must start above 0 (such as 0.05)"
            )
        if not budget > 0:
            raise ValueError(f"budget is {budget}; set the KL to stay below, in nats a sequence, above 0")
        self.kl_coef = float(kl_coef)
        self.target: float | None = budget
        self._least = float(kl_coef)
        self._error = -1.0  # before the first step policy and reference are one

    def update(self, kl_nats_per_sequence: float, *, num_sequences: int) -> None:
        """Call once a step with the mean KL of the sequences of that step."""
        _require_finite(kl_nats_per_sequence)
        assert self.target is not None, "only the fixed controller has none"
        error = min(kl_nats_per_sequence / self.target - 1, ERROR_LIMIT)
        factor = math.exp(INTEGRAL_GAIN * error + PROPORTIONAL_GAIN * (error - self._error))
        self.kl_coef = max(self._least, self.kl_coef * factor)
        self._error = error

    def set_coef(self, kl_coef: float) -> None:
        self.kl_coef = self._least = kl_coef

    def state(self) -> dict[str, float]:
        return {"kl_coef": self.kl_coef, "least": self._least, "error": self._error}

    def load(self, state: dict[str, float]) -> None:
        self.kl_coef, self._error = state["kl_coef"], state["error"]
        self._least = state.get("least", self._least)  # older checkpoints have none


def _require_finite(kl_nats_per_sequence: float) -> None:
    if not math.isfinite(kl_nats_per_sequence):
        raise ValueError(f"KL of the step is {kl_nats_per_sequence}; find the diverged log-probs first")
