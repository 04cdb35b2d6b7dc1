"""The recipe of a live run as it holds in each step: with what was set in flight.

A change holds from the first step that was not begun when it was made, for good: a step that is done again after
a crash finds the settings that it had. So the recipe of step n follows from the one in the run folder and from the
journal, whoever asks: the run, one that resumes it, `leash learn`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from core.config import Section
from core.errors import UserError
from learner.config import LiveLearnerConfig
from orchestration.recipe.config import Recipe
from orchestration.recipe.loading import changed_recipe
from orchestration.recipe.text import toml_value

KL_COEF = "kl.kl_coef"
SETTABLE = (
    KL_COEF,
    "kl.kl_target",
    "learner.learning_rate",
    "trainer.steps",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
    "trainer.evaluate_every",
    "alarm.action",
    "alarm.kl_factor",
    "rollout.autoscale.min_workers",
    "rollout.autoscale.max_workers",
    "rollout.autoscale.grow_above",
    "rollout.autoscale.shrink_below",
    "faults.heartbeat_s",
    "faults.silence_s",
    "faults.drain_s",
    "faults.max_restarts",
)
"""Keys of a recipe that may change while the run goes on, unless it leaves them out. Type and range are the
recipe's. What is sampled depends on none of them: groups are sampled ahead of their step, and once."""
RESUMING = "the recipe that resumed it"
EVENT = "set"
"""Kind of the journal's notes that hold a change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One key has another value from a step on."""

    key: str
    value: str
    """As on the command line."""
    from_step: int
    by: str
    """Who made it: a user's name, or what of Leash did."""

    def __str__(self) -> str:
        return f"{self.key} = {self.value} from step {self.from_step} on, by {self.by}"


class LiveSettings:
    """What holds in which step.

    settings = LiveSettings(recipe, changes)
    settings.order({"kl_coef": "0.05"}, from_step=8, by="ada")
    settings.at(8).kl.kl_coef      # 0.05
    """

    def __init__(self, recipe: Recipe, changes: Iterable[Change] = ()) -> None:
        """`recipe`: of the run, or what resumes it. `changes`: those made so far, in their order, which hold as
        far as this recipe has their tables. Whether they fit it is checked by `order`, which may mend it."""
        self._given = recipe
        self._loaded: dict[tuple[str, ...], Recipe] = {(): recipe}
        """By the overrides that make it."""
        self._changes: list[Change] = []
        for change in changes:
            if value_of(recipe, change.key.rpartition(".")[0]) is not None:
                self._changes = _with(self._changes, change)

    @property
    def latest(self) -> Recipe:
        """The recipe with all that was ordered."""
        return self._recipe(self._changes)

    def order(
        self,
        settings: Mapping[str, str],
        *,
        from_step: int,
        by: str,
        check: Callable[[Recipe], None] = lambda recipe: None,
    ) -> list[Change]:
        """Change settings; a key may be given without its table. All of them, or a `UserError` and none. `check`
        raises it for a recipe that is valid and comes too late."""
        present = [key for key in SETTABLE if value_of(self._given, key) is not None]
        changes = [
            Change(key=_full_name(key, present), value=value, from_step=from_step, by=by)
            for key, value in settings.items()
        ]
        ordered = self._changes
        for change in changes:
            ordered = _with(ordered, change)
        check(self._recipe(ordered))
        self._check_steps(ordered, from_step)
        self._changes = ordered
        return changes

    def at(self, step: int) -> Recipe:
        """The recipe that holds in a step."""
        return self._recipe(_until(self._changes, step))

    def learner_at(self, step: int) -> LiveLearnerConfig:
        """What the learner is to know before a step."""
        recipe = self.at(step)
        return LiveLearnerConfig(
            kl_coef=recipe.kl.kl_coef if self.change_at(KL_COEF, step) else None,
            kl_target=recipe.kl.kl_target,
            learning_rate=recipe.learner.learning_rate,
            num_steps=recipe.trainer.steps,
        )

    def change_at(self, key: str, step: int) -> Change | None:
        """The change of a key that holds from exactly this step on."""
        return next((c for c in self._changes if c.key == key and c.from_step == step), None)

    def given(self, key: str, *, but_by: str) -> Any:
        """The latest value of a key that anybody but this one has given it, the recipe included."""
        values = [change.value for change in self._changes if change.key == key and change.by != but_by]
        return values[-1] if values else value_of(self._given, key)

    def values(self) -> dict[str, Any]:
        """Every key that can be set in this run, with its latest value."""
        values = {key: value_of(self.latest, key) for key in SETTABLE}
        return {key: value for key, value in values.items() if value is not None}

    def changed(self) -> dict[str, Change]:
        """The latest change of every key that was changed."""
        return {change.key: change for change in self._changes}

    def _recipe(self, changes: Iterable[Change]) -> Recipe:
        overrides = tuple(f"{change.key}={change.value}" for change in changes)
        if overrides not in self._loaded:
            self._loaded[overrides] = changed_recipe(self._given, overrides)
        return self._loaded[overrides]

    def _check_steps(self, changes: list[Change], first: int) -> None:
        """Raise `UserError` if there is a step, from `first` on, in which no valid recipe holds: of steps that are
        done again, some come before changes that were made already."""
        for step in sorted({first, *(c.from_step for c in changes if c.from_step > first)}):
            try:
                self._recipe(_until(changes, step))
            except UserError as error:
                raise UserError(f"in step {step}, before later changes hold: {error}") from None


def journaled(notes: Iterable[Mapping[str, Any]]) -> list[Change]:
    """The changes that a journal's notes of kind `EVENT` hold."""
    return [Change(**{name: note[name] for name in Change.__slots__}) for note in notes]


def as_note(change: Change) -> dict[str, Any]:
    """What `journaled` reads."""
    return asdict(change)


def resumed_otherwise(before: Recipe, resumed: Recipe) -> dict[str, str]:
    """Settable keys to which a recipe that resumes a run gives another value than the one before: the last word."""
    return {
        key: toml_value(value_of(resumed, key))
        for key in SETTABLE
        if value_of(resumed, key) not in (None, value_of(before, key))
    }


def value_of(recipe: Recipe, key: str) -> Any:
    """The value of a dotted key; None also if a table on the way is left out."""
    value: Section | Any = recipe
    for name in key.split("."):
        value = None if value is None else getattr(value, name)
    return value


def _with(changes: list[Change], change: Change) -> list[Change]:
    """The last word counts: what was to come later for the same key does not any more."""
    stay = [c for c in changes if c.key != change.key or c.from_step < change.from_step]
    return sorted([*stay, change], key=lambda c: c.from_step)


def _until(changes: list[Change], step: int) -> list[Change]:
    """Those that hold in a step."""
    return [change for change in changes if change.from_step <= step]


def _full_name(name: str, present: Sequence[str]) -> str:
    """The key that is meant: its whole name, or the last part of it."""
    for key in present:
        if name in (key, key.rpartition(".")[2]):
            return key
    raise UserError(f"{name}: cannot change while this run goes on; what can: {', '.join(present)}")
