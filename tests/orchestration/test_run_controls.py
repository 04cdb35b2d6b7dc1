"""Orders to a live run, over a real fleet of fake workers."""

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from actors.config import AutoscaleConfig, FaultsConfig
from actors.fleet import Fleet
from core.errors import OverOptimized, UserError
from orchestration.alarm.config import AlarmConfig
from orchestration.alarm.monitor import Alarm
from orchestration.cluster import Workers
from orchestration.run_controls import RunControls
from orchestration.run_log import RunLog
from orchestration.trainer import Trainer
from tests.fakes import FakeWorker, run_virtually


class FakeTrainer:
    is_paused = False

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False


class FakeLearner:
    def __init__(self) -> None:
        self.kl_coefs: list[float] = []

    async def set_kl_coef(self, kl_coef: float) -> None:
        self.kl_coefs.append(kl_coef)


class FakePool:
    policy_version = 7


class FakeLog:
    phase_name = "learn"

    def __init__(self) -> None:
        self.records = [{"step": 7, "kl_coef": 0.3, "rollout_s": 8.0, "step_s": 10.0}]
        self.events: list[str] = []
        self.alarms: list[Alarm] = []

    def event(self, kind: str, text: str) -> None:
        self.events.append(f"{kind}: {text}")


class FakeConfig:
    """The two keys of a recipe that a status tells of."""

    name = "tiny"

    class trainer:
        steps = 20

    class kl:
        kl_coef = 0.1

    alarm = AlarmConfig()

    class rollout:
        workers = 1
        autoscale: AutoscaleConfig | None = None


NO_ACTION = AlarmConfig()
ALARM = Alarm(signal="length", value=9.0, baseline=3.0, deviation=8.0, sentence="Three times as long.")


class Controlled:
    """Controls of a run with one rollout worker and one reference."""

    def __init__(self, autoscale: AutoscaleConfig | None = None, alarm: AlarmConfig = NO_ACTION) -> None:
        FakeConfig.rollout.autoscale, FakeConfig.alarm = autoscale, alarm
        self.trainer, self.learner, self.log = FakeTrainer(), FakeLearner(), FakeLog()
        self.fleets: dict[str, Fleet[Any]] = {
            kind: Fleet(kind, FakeWorker, faults=FaultsConfig(), start_s=100)
            for kind in ("rollout", "reference")
        }
        workers = Workers(learner=cast(Any, self.learner), pool=cast(Any, FakePool()), fleets=self.fleets)
        self.controls = RunControls(
            cast(Any, FakeConfig()), cast(Trainer, self.trainer), workers, cast(RunLog, self.log)
        )

    def run(self, *orders: Coroutine[Any, Any, None]) -> None:
        async def scenario() -> None:
            for fleet in self.fleets.values():
                await fleet.start(1)
            await asyncio.sleep(1.0)
            try:
                for order in orders:
                    await order
                self.status = self.controls.status()
            finally:
                for fleet in self.fleets.values():
                    await fleet.close()

        run_virtually(scenario())


def test_the_status_tells_of_every_worker_and_of_the_last_step() -> None:
    run = Controlled()
    run.run()
    assert {key: run.status[key] for key in ("name", "state", "step", "steps", "policy_version")} == {
        "name": "tiny",
        "state": "learn",
        "step": 7,
        "steps": 20,
        "policy_version": 7,
    }
    assert [(w["name"], w["kind"], w["state"], w["restarts"]) for w in run.status["workers"]] == [
        ("rollout-0", "rollout", "serving", 0),
        ("reference-0", "reference", "serving", 0),
    ]
    assert run.status["settings"] == {"kl_coef": 0.3}


def test_scaling_changes_the_fleets_and_is_recorded() -> None:
    run = Controlled()
    run.run(run.controls.scale({"rollout": 3}))
    assert (run.fleets["rollout"].size, run.fleets["reference"].size) == (3, 1)
    assert run.log.events == ["scale: rollout: 1 -> 3 workers, as ordered"]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            {"rollout": 2, "critic": 1},
            "critic: this run has no such workers; choose among rollout, reference",
        ),
        ({"reference": 2, "rollout": 0}, "rollout=0: give a number from 1 to 1024"),
        ({"rollout": 1025}, "rollout=1025: give a number"),
    ],
)
def test_a_wrong_order_changes_nothing(sizes: dict[str, int], said: str) -> None:
    run = Controlled()
    with pytest.raises(UserError, match=said):
        run.run(run.controls.scale(sizes))
    assert [fleet.size for fleet in run.fleets.values()] == [1, 1]
    assert run.log.events == []


def test_a_run_stands_still_until_it_is_resumed() -> None:
    run = Controlled()
    run.run(run.controls.pause(), run.controls.pause())
    assert run.trainer.is_paused
    assert run.status["state"] == "paused"
    run.run(run.controls.resume(), run.controls.resume())
    assert not run.trainer.is_paused
    assert run.log.events == ["pause: paused after the step in progress", "resume: goes on"]


def test_a_setting_reaches_the_learner_and_reaches_it_again_after_a_restart() -> None:
    run = Controlled()
    run.run(run.controls.set({"kl_coef": "0.05"}))
    assert run.learner.kl_coefs == [0.05]
    assert run.status["settings"] == {"kl_coef": 0.05}
    run.run(run.controls.set_again())
    assert run.learner.kl_coefs == [0.05, 0.05]
    assert run.log.events == ["set: kl_coef = 0.05"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kl_coef": "0.1", "gamma": "1"}, "gamma: cannot change while the run goes on; what can: kl_coef"),
        ({"kl_coef": "much"}, "kl_coef=much: give a number, 0 or more"),
        ({"kl_coef": "-1"}, "kl_coef=-1: give a number"),
        ({"kl_coef": "nan"}, "kl_coef=nan: give a number"),
    ],
)
def test_a_wrong_setting_changes_nothing(settings: dict[str, str], said: str) -> None:
    run = Controlled()
    with pytest.raises(UserError, match=said):
        run.run(run.controls.set(settings))
    assert (run.learner.kl_coefs, run.log.events) == ([], [])


def test_the_autoscaler_scales_the_rollout_workers_and_says_why() -> None:
    run = Controlled(AutoscaleConfig(max_workers=4, window_steps=2))

    async def two_steps() -> None:
        await run.controls.after_step()
        await run.controls.after_step()

    run.run(two_steps())
    assert run.fleets["rollout"].size == 2
    assert run.log.events == [
        "scale: rollout: 1 -> 2 workers, the learner waited 80% of the last 2 steps for rollouts "
        "(grow above 50%, shrink below 10%)"
    ]


def test_an_order_is_where_the_autoscaler_goes_on_from() -> None:
    run = Controlled(AutoscaleConfig(max_workers=9, window_steps=2))

    async def order_between_steps() -> None:
        await run.controls.after_step()
        await run.controls.scale({"rollout": 8})
        await run.controls.after_step()
        await run.controls.after_step()

    run.run(order_between_steps())
    assert run.fleets["rollout"].size == 9


def test_an_alarm_does_by_itself_nothing_but_warn() -> None:
    run = Controlled()
    run.log.alarms = [ALARM]
    run.run(run.controls.after_step())
    assert (run.learner.kl_coefs, run.log.events, run.trainer.is_paused) == ([], [], False)
    assert run.log.alarms == []


def test_alarms_of_a_step_raise_the_kl_coefficient_once() -> None:
    run = Controlled(alarm=AlarmConfig(action="raise_kl", kl_factor=2.0))
    run.log.alarms = [ALARM, ALARM]

    async def two_steps() -> None:
        await run.controls.after_step()
        await run.controls.after_step()
        run.log.alarms = [ALARM]
        await run.controls.after_step()

    run.run(two_steps())
    assert run.learner.kl_coefs == pytest.approx([0.6, 1.2])


def test_an_alarm_pauses_the_run() -> None:
    run = Controlled(alarm=AlarmConfig(action="pause"))
    run.log.alarms = [ALARM]
    run.run(run.controls.after_step())
    assert run.trainer.is_paused


def test_an_alarm_stops_the_run_and_says_why() -> None:
    run = Controlled(alarm=AlarmConfig(action="stop"))
    run.log.alarms = [ALARM]
    with pytest.raises(
        OverOptimized, match="stopped by the alarm after step 7: Three times as long. What has"
    ):
        run.run(run.controls.after_step())
