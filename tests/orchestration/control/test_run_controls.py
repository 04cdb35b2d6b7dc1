"""Orders to a live run, over a real fleet of fake workers."""

import asyncio
import getpass
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from actors.config import FaultsConfig
from actors.fleet import Fleet
from core.errors import OverOptimized, UserError
from learner.config import LiveLearnerConfig
from orchestration.alarm.monitor import Alarm
from orchestration.cluster.launch import Workers
from orchestration.control.run_controls import RunControls, resumed_settings
from orchestration.ledger.ledger import Ledger
from orchestration.loop.trainer import Trainer
from orchestration.recipe.live_settings import Change, LiveSettings, as_note
from orchestration.recipe.loading import load_recipe
from orchestration.reporting.run_log import RunLog
from orchestration.run_folder import RunFolder
from tests.fakes import FakeWorker, run_virtually

TIMES = {"wait_batch_s": 8.0, "step_s": 10.0}


class FakeTrainer:
    is_paused = False
    stop = evaluate_every = 0

    def retarget(self, *, stop: int, evaluate_every: int) -> None:
        self.stop, self.evaluate_every = stop, evaluate_every

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False


class FakeLearner:
    def __init__(self) -> None:
        self.told: list[LiveLearnerConfig] = []

    async def configure(self, config: LiveLearnerConfig) -> None:
        self.told.append(config)

    @property
    def kl_coefs(self) -> list[float | None]:
        return [config.kl_coef for config in self.told]


class FakePool:
    policy_version = 7


class FakeLog:
    phase_name = "learn"

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = [{"step": 7, "kl_coef": 0.2, "kl_coef_next": 0.3} | TIMES]
        self.events: list[str] = []
        self.alarms: list[Alarm] = []
        self.notes: list[Mapping[str, Any]] = []

    def event(self, kind: str, text: str) -> None:
        self.events.append(f"{kind}: {text}")

    def last_step(self, steps: int) -> None:
        self.num_steps = steps

    def order(self, kind: str, text: str, details: Mapping[str, Any]) -> None:
        self.event(kind, text)
        self.notes.append(details)


RECIPE = """\
name = "tiny"
model.path = "asset:model"
prompts = { kind = "jsonl", path = "prompts.jsonl" }
rewards = [{ kind = "function", name = "one", function = "a:b" }]
algorithm.kind = "rloo"
trainer.steps = 20
trainer.prompts_per_step = 4
kl.kl_coef = 0.1
"""
RAISES_KL = 'alarm = { action = "raise_kl", kl_factor = 2.0, max_kl_factor = 100.0 }'
ALARM = Alarm(signal="length", value=9.0, baseline=3.0, deviation=8.0, sentence="Three times as long.")


class Controlled:
    """Controls of a run with one rollout worker and one reference."""

    def __init__(self, folder: Path, more: str = "") -> None:
        """`more`: lines of the recipe. Step 7 is done, and step 8 comes next."""
        self.trainer, self.learner, self.log = FakeTrainer(), FakeLearner(), FakeLog()
        self.fleets: dict[str, Fleet[Any]] = {
            kind: Fleet(kind, FakeWorker, faults=FaultsConfig(), start_s=100)
            for kind in ("rollout", "reference")
        }
        workers = Workers(learner=cast(Any, self.learner), pool=cast(Any, FakePool()), fleets=self.fleets)
        file = folder / "recipe.toml"
        file.write_text(RECIPE + more)
        self.controls = RunControls(
            LiveSettings(load_recipe(file)), 7, cast(Trainer, self.trainer), workers, cast(RunLog, self.log)
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


def test_the_status_tells_of_every_worker_and_of_the_last_step(tmp_path: Path) -> None:
    run = Controlled(tmp_path)
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
    assert run.status["settings"]["kl.kl_coef"] == 0.3
    assert "kl.kl_target" not in run.status["settings"], "the recipe leaves it out"


def test_scaling_changes_the_fleets_and_is_recorded(tmp_path: Path) -> None:
    run = Controlled(tmp_path)
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
def test_a_wrong_order_changes_nothing(tmp_path: Path, sizes: dict[str, int], said: str) -> None:
    run = Controlled(tmp_path)
    with pytest.raises(UserError, match=said):
        run.run(run.controls.scale(sizes))
    assert [fleet.size for fleet in run.fleets.values()] == [1, 1]
    assert run.log.events == []


def test_a_run_stands_still_until_it_is_resumed(tmp_path: Path) -> None:
    run = Controlled(tmp_path)
    run.run(run.controls.pause(), run.controls.pause())
    assert run.trainer.is_paused
    assert run.status["state"] == "paused"
    run.run(run.controls.resume(), run.controls.resume())
    assert not run.trainer.is_paused
    assert run.log.events == ["pause: paused after the step in progress", "resume: goes on"]


def test_a_setting_holds_from_the_next_step_on(tmp_path: Path) -> None:
    run = Controlled(tmp_path)

    async def scenario() -> None:
        await run.controls.before_step(8)
        await run.controls.set({"kl_coef": "0.05", "learner.learning_rate": "1e-4", "silence_s": "9"})
        told_before = len(run.learner.told)
        await run.controls.before_step(9)
        assert told_before == 1
        await run.controls.before_step(10)

    run.run(scenario())
    assert run.learner.kl_coefs == [None, 0.05, None], "from then on it is where the controller has it"
    assert [config.learning_rate for config in run.learner.told] == [1e-5, 1e-4, 1e-4]
    assert run.fleets["reference"].faults.silence_s == 9
    user = getpass.getuser()
    assert run.log.events == [
        f"set: kl.kl_coef = 0.05 from step 9 on, by {user}",
        f"set: learner.learning_rate = 1e-4 from step 9 on, by {user}",
        f"set: faults.silence_s = 9 from step 9 on, by {user}",
    ]
    assert run.status["settings"]["kl.kl_coef"] == 0.05
    assert run.status["changed"]["kl.kl_coef"] == f"from step 9 on, by {user}"


def test_a_learner_that_went_back_meets_the_setting_at_the_same_step_again(tmp_path: Path) -> None:
    run = Controlled(tmp_path)

    async def scenario() -> None:
        await run.controls.before_step(8)
        await run.controls.set({"kl_coef": "0.05"})
        await run.controls.before_step(9)
        run.controls.go_back(6)
        for step in (7, 8, 9):
            await run.controls.before_step(step)

    run.run(scenario())
    assert run.learner.kl_coefs == [None, 0.05, None, None, 0.05]


def test_steps_may_be_more_or_fewer_but_not_fewer_than_are_begun(tmp_path: Path) -> None:
    run = Controlled(tmp_path)

    async def scenario() -> None:
        await run.controls.before_step(8)
        with pytest.raises(UserError, match="trainer.steps = 8: step 8 is begun or done; give 9 or more"):
            await run.controls.set({"steps": "8"})
        await run.controls.set({"steps": "9", "evaluate_every": "2"})
        assert (run.trainer.stop, run.trainer.evaluate_every) == (20, 0)
        await run.controls.before_step(9)

    run.run(scenario())
    assert (run.trainer.stop, run.trainer.evaluate_every, run.log.num_steps) == (9, 2, 9)
    assert run.learner.told[-1].num_steps == 9, "where the learning-rate schedule ends"


def test_an_earlier_end_would_leave_overtaken_groups_behind(tmp_path: Path) -> None:
    order = 'trainer.order = "completion"\ntrainer.max_lag = 1\nalgorithm.importance_sampling = "token"'
    run = Controlled(tmp_path, order)
    with pytest.raises(UserError, match="overtaken would never be trained on"):
        run.run(run.controls.set({"steps": "15"}))
    run.run(run.controls.set({"steps": "25"}))
    assert run.controls.num_steps == 25


def test_after_the_last_step_nothing_changes(tmp_path: Path) -> None:
    run = Controlled(tmp_path)
    run.controls.is_over = True
    with pytest.raises(UserError, match="the run has done its last step"):
        run.run(run.controls.set({"steps": "30"}))


def test_in_the_last_step_other_settings_than_its_number_may_change(tmp_path: Path) -> None:
    run = Controlled(tmp_path)

    async def last_step() -> None:
        await run.controls.before_step(20)
        await run.controls.set({"silence_s": "30"})
        with pytest.raises(UserError, match="trainer.steps = 19: step 20 is begun or done; give 21 or more"):
            await run.controls.set({"steps": "19"})
        await run.controls.set({"steps": "25"})

    run.run(last_step())
    assert (run.status["settings"]["faults.silence_s"], run.controls.num_steps) == (30, 25)


class FakeLedger:
    def __init__(self, log: FakeLog) -> None:
        self._log = log

    def notes(self, kind: str) -> Sequence[Mapping[str, Any]]:
        return list(self._log.notes)


def test_a_recipe_that_resumes_the_run_has_the_last_word_on_disk_before_it_is_kept(tmp_path: Path) -> None:
    """Also after a start that failed in between: the same recipe says the same once more."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    before, log = load_recipe(tmp_path / "tiny.toml"), FakeLog()
    set_before = Change(key="faults.silence_s", value="30", from_step=3, by="ada")
    log.notes = [as_note(set_before)]
    folder = RunFolder.create(before, tmp_path / "run")
    resumed = load_recipe(tmp_path / "tiny.toml", ["faults.silence_s=70"])
    for start in (7, 20):  # also after the last step
        folder = RunFolder.reopen(resumed, folder.path)
        settings = resumed_settings(resumed, folder, start, cast(Ledger, FakeLedger(log)), cast(RunLog, log))
        assert settings.at(start + 1).faults.silence_s == 70
        assert load_recipe(folder.path / "recipe.toml") == resumed
        folder.keep_recipe(before)  # as if the run had ended between the two
    by = "by the recipe that resumed it"
    assert log.events == [f"set: faults.silence_s = 70.0 from step {step} on, {by}" for step in (8, 21)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"kl_coef": "0.1", "gamma": "1"},
            "gamma: cannot change while this run goes on; what can: kl.kl_coef, ",
        ),
        ({"max_workers": "3"}, "max_workers: cannot change while this run goes on"),
        ({"kl_coef": "much"}, 'kl.kl_coef = "much": must be a number, at least 0; set 0.05, the default'),
        ({"kl_coef": "-1"}, "kl.kl_coef = -1: must be a number, at least 0"),
        ({"kl_coef": "nan"}, "kl.kl_coef = nan: must be a finite number"),
        ({"checkpoint_every": "2", "steps": "0"}, "trainer.steps = 0: must be a whole number, at least 1"),
        ({"action": "shout"}, 'alarm.action = "shout": must be one of "warn", "raise_kl"'),
    ],
)
def test_a_wrong_setting_changes_nothing(tmp_path: Path, settings: dict[str, str], said: str) -> None:
    run = Controlled(tmp_path)
    with pytest.raises(UserError, match=said):
        run.run(run.controls.set(settings))
    assert (run.controls.status()["changed"], run.log.events) == ({}, [])


def test_the_autoscaler_scales_the_rollout_workers_and_says_why(tmp_path: Path) -> None:
    run = Controlled(tmp_path, "rollout.autoscale = { max_workers = 4, window_steps = 2 }")

    async def two_steps() -> None:
        await run.controls.after_step()
        await run.controls.after_step()

    run.run(two_steps())
    assert run.fleets["rollout"].size == 2
    assert run.log.events == [
        "scale: rollout: 1 -> 2 workers, the learner waited 80% of the last 2 steps for rollouts "
        "(grow above 50%, shrink below 10%)"
    ]


def test_an_order_is_where_the_autoscaler_goes_on_from(tmp_path: Path) -> None:
    run = Controlled(tmp_path, "rollout.autoscale = { max_workers = 9, window_steps = 2 }")

    async def order_between_steps() -> None:
        await run.controls.after_step()
        await run.controls.scale({"rollout": 8})
        await run.controls.after_step()
        await run.controls.after_step()

    run.run(order_between_steps())
    assert run.fleets["rollout"].size == 9


def test_other_bounds_bring_the_rollout_workers_within_them(tmp_path: Path) -> None:
    run = Controlled(tmp_path, "rollout.autoscale.max_workers = 4")

    async def more_at_least() -> None:
        await run.controls.before_step(8)
        await run.controls.set({"min_workers": "2"})
        assert run.fleets["rollout"].size == 1
        await run.controls.before_step(9)

    run.run(more_at_least())
    assert run.fleets["rollout"].size == 2
    assert run.log.events[-1] == "scale: rollout: 1 -> 2 workers, for 2 to 4, as set"


def test_a_resumed_run_goes_by_the_step_to_come_and_not_by_what_held_before(tmp_path: Path) -> None:
    """In step 7 the journal's grow_above would contradict the recipe that resumes the run."""
    run = Controlled(tmp_path)
    scale = "rollout.autoscale = { max_workers = 4, shrink_below = 0.3, grow_above = 0.6 }"
    (tmp_path / "recipe.toml").write_text(RECIPE + scale)
    grow_above = Change(key="rollout.autoscale.grow_above", value="0.2", from_step=3, by="ada")
    settings = LiveSettings(load_recipe(tmp_path / "recipe.toml"), [grow_above])
    settings.order({"grow_above": "0.6"}, from_step=8, by="the recipe that resumed it")
    workers = run.controls._workers
    controls = RunControls(settings, 7, cast(Trainer, run.trainer), workers, cast(RunLog, run.log))
    assert controls.recipe == settings.at(8)


def test_an_alarm_does_by_itself_nothing_but_warn(tmp_path: Path) -> None:
    run = Controlled(tmp_path)
    run.log.alarms = [ALARM]
    run.run(run.controls.after_step())
    assert (run.learner.kl_coefs, run.log.events, run.trainer.is_paused) == ([], [], False)
    assert run.log.alarms == []


def test_alarms_of_a_step_raise_the_kl_coefficient_once(tmp_path: Path) -> None:
    run = Controlled(tmp_path, RAISES_KL)
    run.log.alarms = [ALARM, ALARM]

    async def four_steps() -> None:
        for step in (8, 9, 10, 11):
            await run.controls.before_step(step)
            await run.controls.after_step()
            run.log.records.append({"step": step, "kl_coef_next": run.controls.recipe.kl.kl_coef} | TIMES)
            run.log.alarms = [ALARM] if step == 9 else []

    run.run(four_steps())
    assert run.learner.kl_coefs == [None, 0.6, None, 1.2]
    assert run.log.events == [
        "set: kl.kl_coef = 0.6 from step 9 on, by the alarm",
        "set: kl.kl_coef = 1.2 from step 11 on, by the alarm",
    ]


def test_the_alarm_raises_what_the_controller_made_of_the_coefficient_after_the_step(tmp_path: Path) -> None:
    run = Controlled(tmp_path, RAISES_KL)

    async def a_step_far_above_the_target() -> None:
        await run.controls.before_step(8)
        run.log.records.append({"step": 8, "kl_coef": 0.3, "kl_coef_next": 0.9} | TIMES)
        run.log.alarms = [ALARM]
        await run.controls.after_step()
        await run.controls.before_step(9)

    run.run(a_step_far_above_the_target())
    assert run.learner.kl_coefs == [None, 1.8]


def test_alarms_raise_the_coefficient_to_a_multiple_of_what_people_have_set_and_no_further(
    tmp_path: Path,
) -> None:
    run = Controlled(tmp_path, 'alarm = { action = "raise_kl", kl_factor = 2.0, max_kl_factor = 5.0 }')

    async def an_alarm_in_every_step() -> None:
        for step in range(8, 13):
            await run.controls.before_step(step)
            run.log.records.append({"step": step, "kl_coef_next": run.controls.recipe.kl.kl_coef} | TIMES)
            run.log.alarms = [ALARM]
            await run.controls.after_step()
            if step == 11:
                await run.controls.set({"kl_coef": "0.2"})

    run.run(an_alarm_in_every_step())
    by, user = "by the alarm", f"by {getpass.getuser()}"
    assert run.log.events == [
        f"set: kl.kl_coef = 0.2 from step 9 on, {by}",
        f"set: kl.kl_coef = 0.4 from step 10 on, {by}",
        f"set: kl.kl_coef = 0.5 from step 11 on, {by}",
        "alarm: kl_coef stays 0.5: that is alarm.max_kl_factor = 5 times 0.1 or more",
        f"set: kl.kl_coef = 0.2 from step 12 on, {user}",
        f"set: kl.kl_coef = 0.4 from step 13 on, {by}",
    ]


def test_in_a_step_that_is_done_again_the_alarm_does_not_raise_it_again(tmp_path: Path) -> None:
    run = Controlled(tmp_path, RAISES_KL)

    async def twice() -> None:
        for _ in range(2):
            run.controls.go_back(7)
            await run.controls.before_step(8)
            run.log.alarms = [ALARM]
            await run.controls.after_step()

    run.run(twice())
    assert run.log.events == ["set: kl.kl_coef = 0.6 from step 9 on, by the alarm"]


@pytest.mark.parametrize("action", ["raise_kl", "pause"])
def test_an_alarm_of_the_last_step_is_a_warning(tmp_path: Path, action: str) -> None:
    run = Controlled(tmp_path, f'alarm.action = "{action}"')

    async def last_step() -> None:
        await run.controls.before_step(20)
        run.log.alarms = [ALARM]
        await run.controls.after_step()

    run.run(last_step())
    assert (run.log.events, run.trainer.is_paused) == ([], False)


def test_an_alarm_pauses_the_run(tmp_path: Path) -> None:
    run = Controlled(tmp_path, 'alarm.action = "pause"')
    run.log.alarms = [ALARM]
    run.run(run.controls.after_step())
    assert run.trainer.is_paused


def test_an_alarm_stops_the_run_and_says_why(tmp_path: Path) -> None:
    run = Controlled(tmp_path, 'alarm.action = "stop"')
    run.log.alarms = [ALARM]
    with pytest.raises(
        OverOptimized, match="stopped by the alarm after step 7: Three times as long. What has"
    ):
        run.run(run.controls.after_step())
