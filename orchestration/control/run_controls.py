"""What can be asked of a live run: its status, more or fewer workers, to stand still, and another setting."""

import getpass
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from actors.autoscale_config import AutoscaleConfig
from core.errors import OverOptimized, UserError
from orchestration.alarm.config import AlarmConfig
from orchestration.alarm.monitor import Alarm
from orchestration.cluster.launch import Workers
from orchestration.ledger.ledger import Ledger
from orchestration.loop.autoscaler import Autoscaler
from orchestration.loop.trainer import Trainer
from orchestration.recipe.config import Recipe
from orchestration.recipe.live_settings import EVENT, KL_COEF, RESUMING, LiveSettings, as_note, journaled
from orchestration.reporting.run_log import RunLog
from orchestration.run_folder import RunFolder

ALARM = "the alarm"
MAX_WORKERS = 1024
"""Of one kind: beyond this somebody has mistyped."""


def resumed_settings(
    recipe: Recipe, folder: RunFolder, start: int, ledger: Ledger, log: RunLog
) -> LiveSettings:
    """What holds in the steps after version `start`: the recipe, what was set in flight, and as the last word what
    a recipe that resumes the run says otherwise than the one before. All of it is on disk then."""
    settings = LiveSettings(recipe, journaled(ledger.notes(EVENT)))
    for change in settings.order(folder.resumed_otherwise, from_step=start + 1, by=RESUMING):
        log.order(EVENT, str(change), as_note(change))
    folder.keep_recipe(recipe)
    return settings


class RunControls:
    """The run as `leash status`, `scale`, `pause`, `resume` and `set` see it. Every order is journaled."""

    def __init__(
        self, settings: LiveSettings, start: int, trainer: Trainer, workers: Workers, log: RunLog
    ) -> None:
        """`start`: the policy version that training goes on from."""
        self._settings = settings
        self.recipe = settings.at(start + 1)
        """As it holds in the step in progress, and before the first one in that."""
        self._next_step = start + 1
        """The first that was not begun."""
        self.is_over = False
        """After the last step nothing changes any more."""
        self._trainer = trainer
        self._workers = workers
        self._log = log
        self._started = time.perf_counter()
        autoscale, size = self.recipe.rollout.autoscale, self.recipe.rollout.workers
        self._autoscaler = Autoscaler(autoscale, size) if autoscale else None

    def status(self) -> dict[str, Any]:
        """What the run does now."""
        step = self._log.records[-1]["step"] if self._log.records else 0
        return {
            "name": self.recipe.name,
            "state": "paused" if self._trainer.is_paused else self._log.phase_name,
            "step": step,
            "steps": self.num_steps,
            "policy_version": self._workers.pool.policy_version,
            "seconds": time.perf_counter() - self._started,
            "workers": [worker for fleet in self._workers.fleets.values() for worker in self._of(fleet)],
            "settings": self._values(),
            "changed": {
                key: f"from step {change.from_step} on, by {change.by}"
                for key, change in self._settings.changed().items()
            },
            "events": list(self._log.events),
        }

    async def scale(self, sizes: Mapping[str, int]) -> None:
        """So many workers of each kind, as soon as they are up; who is too many finishes first."""
        fleets = self._workers.fleets
        for kind, size in sizes.items():
            if kind not in fleets:
                raise UserError(f"{kind}: this run has no such workers; choose among {', '.join(fleets)}")
            if not 1 <= size <= MAX_WORKERS:
                raise UserError(f"{kind}={size}: give a number from 1 to {MAX_WORKERS}")
        for kind, size in sizes.items():
            self._scale(kind, size, "as ordered")
            if kind == "rollout" and self._autoscaler:
                self._autoscaler.set_size(size)

    async def after_step(self) -> None:
        """Act on the last step's alarms, and let the autoscaler, if there is one, look at it."""
        if self._log.alarms:
            alarms, self._log.alarms = self._log.alarms, []
            await self._act_on(alarms)
        if self._autoscaler is None:
            return
        record = self._log.records[-1]
        size = self._autoscaler.after_step(record["wait_batch_s"], record["step_s"])
        if size is not None:
            self._scale("rollout", size, self._autoscaler.reason)

    async def pause(self) -> None:
        """Stand still after the step in progress."""
        if not self._trainer.is_paused:
            self._log.event("pause", "paused after the step in progress")
        self._trainer.pause()

    async def resume(self) -> None:
        """Go on."""
        if self._trainer.is_paused:
            self._log.event("resume", "goes on")
        self._trainer.resume()

    async def set(self, settings: Mapping[str, str]) -> None:
        """Change settings from the next step on. On disk once it returns."""
        self._set(settings, by=_user())

    def _set(self, settings: Mapping[str, str], *, by: str) -> None:
        if self.is_over:
            raise UserError("the run has done its last step: nothing of it changes any more")
        for change in self._settings.order(settings, from_step=self._next_step, by=by, check=self._in_time):
            self._log.order(EVENT, str(change), as_note(change))
        self._log.last_step(self.num_steps)

    def _in_time(self, recipe: Recipe) -> None:
        if recipe.trainer.steps == self.num_steps:
            return
        if recipe.trainer.steps < self._next_step:
            raise UserError(
                f"trainer.steps = {recipe.trainer.steps}: step {self._next_step - 1} is begun or done; "
                f"give {self._next_step} or more"
            )
        if recipe.trainer.steps < self.num_steps and recipe.trainer.max_overtaken > 0:
            raise UserError(
                f"trainer.steps = {recipe.trainer.steps}: groups that were overtaken would never be trained on, "
                f'with trainer.order = "{recipe.trainer.order}"; give {self.num_steps} or more, or stop the run'
            )

    @property
    def num_steps(self) -> int:
        """The run's last step, as far as anybody has said."""
        return self._settings.latest.trainer.steps

    def go_back(self, version: int) -> None:
        """The learner was started anew, from a checkpoint."""
        self._next_step = version + 1

    async def before_step(self, step: int) -> None:
        """Make what was set hold in this step."""
        self._next_step = step + 1
        before, self.recipe = self.recipe, self._settings.at(step)
        recipe = self.recipe
        if recipe.rollout.autoscale != before.rollout.autoscale:
            self._autoscale(recipe.rollout.autoscale)
        for fleet in self._workers.fleets.values():
            fleet.faults = recipe.faults
        self._trainer.retarget(stop=recipe.trainer.steps, evaluate_every=recipe.trainer.evaluate_every)
        await self._workers.learner.configure(self._settings.learner_at(step))

    async def _act_on(self, alarms: Sequence[Alarm]) -> None:
        """What the recipe has the alarm do. Raises `OverOptimized`."""
        config = self.recipe.alarm
        match config.action:
            case "raise_kl" | "pause" if self._next_step > self.num_steps:
                return  # there is no step to come
            case "warn":
                return
            case "raise_kl":
                change = self._settings.change_at(KL_COEF, self._next_step)
                if change is None or change.by != ALARM:  # else the step is done again, and so is this
                    self._raise_kl_coef(config)
            case "pause":
                await self.pause()
            case "stop":
                raise OverOptimized(
                    f"stopped by the alarm after step {self._log.records[-1]['step']}: "
                    + " ".join(alarm.sentence for alarm in alarms)
                    + " What has been saved is from before; raise kl_coef or mend the reward, or set alarm.action."
                )

    def _raise_kl_coef(self, config: AlarmConfig) -> None:
        """By the alarm's factor, as far as the most that it may make of what people have set."""
        now, given = self._values()[KL_COEF], float(self._settings.given(KL_COEF, but_by=ALARM))
        raised = min(now * config.kl_factor, given * config.max_kl_factor)
        if raised > now:
            self._set({KL_COEF: str(raised)}, by=ALARM)
        else:
            self._log.event(
                "alarm",
                f"kl_coef stays {now:g}: that is alarm.max_kl_factor = {config.max_kl_factor:g} times "
                f"{given:g} or more",
            )

    def _autoscale(self, config: AutoscaleConfig | None) -> None:
        """Within other bounds, or by other rules."""
        assert config is not None, "what is left out cannot be set"
        size = self._workers.fleets["rollout"].size
        within = min(max(size, config.min_workers), config.max_workers)
        if within != size:
            self._scale("rollout", within, f"for {config.min_workers} to {config.max_workers}, as set")
        self._autoscaler = Autoscaler(config, within)

    def _scale(self, kind: str, size: int, reason: str) -> None:
        fleet = self._workers.fleets[kind]
        self._log.event("scale", f"{kind}: {fleet.size} -> {size} workers, {reason}")
        fleet.scale(size)

    def _values(self) -> dict[str, Any]:
        """Of all that can be set: what was set last, and of kl_coef what its controller has made of it since, the
        last step included."""
        values = self._settings.values()
        records, change = self._log.records, self._settings.changed().get(KL_COEF)
        if records and (change is None or change.from_step <= records[-1]["step"]):
            values[KL_COEF] = records[-1].get("kl_coef_next", values[KL_COEF])
        return values

    def _of(self, fleet: Any) -> list[dict[str, Any]]:
        serving = self._workers.pool.policy_version if fleet.kind == "rollout" else None
        return [
            {
                "name": slot.name,
                "kind": fleet.kind,
                "state": str(slot.state),
                "version": serving if slot.state in ("serving", "draining") else None,
                "num_running": slot.load,
                "restarts": slot.restarts,
            }
            for slot in fleet.slots
        ]


def _user() -> str:
    """Who runs this process: nobody else may read the token that an order needs."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"
