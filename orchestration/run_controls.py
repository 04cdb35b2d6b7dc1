"""What can be asked of a live run: its status, more or fewer workers, to stand still, and another setting."""

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from core.errors import OverOptimized, UserError
from orchestration.alarm.monitor import Alarm
from orchestration.autoscaler import Autoscaler
from orchestration.cluster import Workers
from orchestration.config import Recipe
from orchestration.run_log import RunLog
from orchestration.trainer import Trainer

MAX_WORKERS = 1024
"""Of one kind: beyond this somebody has mistyped."""


class RunControls:
    """The run as `leash status`, `scale`, `pause`, `resume` and `set` see it. Every order is journaled."""

    def __init__(self, recipe: Recipe, trainer: Trainer, workers: Workers, log: RunLog) -> None:
        self._recipe = recipe
        self._trainer = trainer
        self._workers = workers
        self._log = log
        self._started = time.perf_counter()
        autoscale = recipe.rollout.autoscale
        self._autoscaler = Autoscaler(autoscale, recipe.rollout.workers) if autoscale else None
        self._changed: dict[str, float] = {}
        self._settings: dict[str, Callable[[float], Awaitable[None]]] = {
            "kl_coef": workers.learner.set_kl_coef
        }

    def status(self) -> dict[str, Any]:
        """What the run does now."""
        step = self._log.records[-1]["step"] if self._log.records else 0
        return {
            "name": self._recipe.name,
            "state": "paused" if self._trainer.is_paused else self._log.phase_name,
            "step": step,
            "steps": self._recipe.trainer.steps,
            "policy_version": self._workers.pool.policy_version,
            "seconds": time.perf_counter() - self._started,
            "workers": [worker for fleet in self._workers.fleets.values() for worker in self._of(fleet)],
            "settings": self._status_settings(),
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
        size = self._autoscaler.after_step(record["rollout_s"], record["step_s"])
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
        """Change settings from the next step on."""
        values = {key: self._parsed(key, text) for key, text in settings.items()}
        for key, value in values.items():
            self._log.event("set", f"{key} = {value:g}")
            await self._settings[key](value)
            self._changed[key] = value

    async def set_again(self) -> None:
        """After the learner was started anew from a checkpoint, which may be older than an order."""
        for key, value in self._changed.items():
            await self._settings[key](value)

    async def _act_on(self, alarms: Sequence[Alarm]) -> None:
        """What the recipe has the alarm do. Raises `OverOptimized`."""
        config = self._recipe.alarm
        match config.action:
            case "warn":
                return
            case "raise_kl":
                now: float = self._status_settings()["kl_coef"]
                await self.set({"kl_coef": str(now * config.kl_factor)})
            case "pause":
                await self.pause()
            case "stop":
                raise OverOptimized(
                    f"stopped by the alarm after step {self._log.records[-1]['step']}: "
                    + " ".join(alarm.sentence for alarm in alarms)
                    + " What has been saved is from before; raise kl_coef or mend the reward, or set alarm.action."
                )

    def _scale(self, kind: str, size: int, reason: str) -> None:
        fleet = self._workers.fleets[kind]
        self._log.event("scale", f"{kind}: {fleet.size} -> {size} workers, {reason}")
        fleet.scale(size)

    def _parsed(self, key: str, text: str) -> float:
        if key not in self._settings:
            raise UserError(
                f"{key}: cannot change while the run goes on; what can: {', '.join(self._settings)}"
            )
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{key}={text}: give a number, 0 or more")
        return value

    def _status_settings(self) -> dict[str, float]:
        record = self._log.records[-1] if self._log.records else {}
        last = {key: record[key] for key in self._settings if key in record}
        return {"kl_coef": self._recipe.kl.kl_coef} | last | self._changed

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
