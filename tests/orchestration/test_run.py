"""What a run does when its learner dies, and at its end. Its parts are made up."""

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from core.errors import LearnerLost, UserError
from orchestration import run as run_module
from orchestration.loop.trainer import Trainer
from orchestration.recipe.config import Recipe
from orchestration.recipe.loading import load_recipe
from orchestration.reporting.metrics_hub import MetricsHub
from orchestration.reporting.terminal import TerminalView
from orchestration.run import Run, train
from orchestration.trackers.sink import TrackerSink
from tests.fakes import run_virtually
from tests.recipes import MINIMAL


class Parts:
    """Learner, pool, trainer, checkpoints and held-out prompts in one, and what was asked of them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.learner = self.pool = self
        self.fleets: dict[str, Any] = {}

    async def restart(self) -> None:
        self.asked.append("restart")

    def forget_weights(self) -> None:
        self.asked.append("forget weights")

    async def roll_back(self) -> int:
        return 3

    def resume(self, version: int) -> None: ...

    async def push_weights(self) -> None:
        self.asked.append("push weights")

    async def after(self, version: int, *, select: bool) -> tuple[list[Any], dict[str, float]]:
        return [], {}

    async def reports(self) -> dict[str, Any]:
        return {}

    async def save_model(self, folder: Path) -> None: ...


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "recipe.toml").write_text(MINIMAL, encoding="utf-8")
    return load_recipe(tmp_path / "recipe.toml")


def make_run(recipe: Recipe, now: Recipe, folder: Path, parts: Parts) -> Run:
    """A run in the middle of its training. `now`: the recipe with what was set since it began."""
    inputs = SimpleNamespace(reward_model_metrics={}, seconds_for_reward_model=0.0)
    view = TerminalView()
    trackers = TrackerSink({}, note=view.note, samples_per_step=0)
    run = Run(
        recipe,
        cast(Any, inputs),
        cast(Any, SimpleNamespace(path=folder)),
        MetricsHub(None),
        view,
        trackers,
        started=0.0,
    )
    run._workers = run._checkpoints = run._heldout = cast(Any, parts)
    run._controls = cast(Any, SimpleNamespace(recipe=now, go_back=lambda version: None))
    return run


def test_a_learner_that_is_started_anew_takes_its_weights_along(recipe: Recipe, tmp_path: Path) -> None:
    """Workers that come up meanwhile must not look for them."""
    parts = Parts()
    run = make_run(recipe, recipe, tmp_path, parts)
    reached = run_virtually(run._restart_learner(cast(Trainer, parts), LearnerLost("rank 0 died")))
    assert reached == 3
    assert parts.asked == ["forget weights", "restart", "push weights"]


def test_a_learner_is_started_anew_as_often_as_was_set_last(recipe: Recipe, tmp_path: Path) -> None:
    parts = Parts()
    never = recipe.model_copy(update={"faults": recipe.faults.model_copy(update={"max_restarts": 0})})
    run = make_run(recipe, never, tmp_path, parts)
    with pytest.raises(LearnerLost, match="rank 0 died"):
        run_virtually(run._restart_learner(cast(Trainer, parts), LearnerLost("rank 0 died")))
    assert parts.asked == []


def test_the_summary_tells_the_settings_that_hold_at_the_end(recipe: Recipe, tmp_path: Path) -> None:
    now = recipe.model_copy(update={"kl": recipe.kl.model_copy(update={"kl_target": 4.5})})
    run = make_run(recipe, now, tmp_path, Parts())
    run._log.resume([{"step": 2, "seconds_since_start": 9.0, "kl_coef": 0.3}])
    run_virtually(run._finish(2))
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["kl_target"] == 4.5


def test_who_writes_the_records_knows_whether_the_policy_samples(recipe: Recipe, tmp_path: Path) -> None:
    on_texts = recipe.model_copy(update={"datasets": (SimpleNamespace(),)})
    runs = [make_run(each, each, tmp_path, Parts()) for each in (recipe, on_texts)]
    assert [run._log.on_policy for run in runs] == [True, False]


@pytest.mark.parametrize(
    ("action", "every", "in_doubt", "saved"),
    [
        ("stop", 1, {2, 3}, [1, 4, 5]),
        ("warn", 1, {2, 3}, [1, 2, 3, 4, 5]),
        ("stop", 4, {4}, [5]),  # none is due then, but that of step 4 had to wait
    ],
)
def test_where_the_alarm_stops_the_run_a_checkpoint_waits_until_no_signal_is_in_doubt(
    recipe: Recipe, tmp_path: Path, action: str, every: int, in_doubt: set[int], saved: list[int]
) -> None:
    """It would take the place of the last one from before."""
    trainer = recipe.trainer.model_copy(update={"checkpoint_every": every, "steps": 9})
    alarm = recipe.alarm.model_copy(update={"action": action})
    now = recipe.model_copy(update={"trainer": trainer, "alarm": alarm})
    run = make_run(recipe, now, tmp_path, Parts())
    steps: list[int] = []

    async def save(version: int, *, keep: int) -> None:
        steps.append(version)

    async def nothing() -> None: ...

    run._checkpoints = cast(Any, SimpleNamespace(save=save))
    run._controls.after_step = nothing  # type: ignore[method-assign]
    for step in range(1, 6):
        run._log.is_in_doubt = step in in_doubt
        run_virtually(run._after_step(step))
    assert steps == saved


@pytest.mark.parametrize(
    ("action", "is_in_doubt", "committed", "saved"),
    [
        ("stop", True, 2, []),
        ("stop", True, 0, [3]),  # or else all of it would be lost
        ("stop", False, 2, [3]),
        ("warn", True, 2, [3]),
    ],
)
def test_a_run_that_is_stopped_while_a_signal_is_in_doubt_goes_on_from_before_it(
    recipe: Recipe, tmp_path: Path, action: str, is_in_doubt: bool, committed: int, saved: list[int]
) -> None:
    now = recipe.model_copy(update={"alarm": recipe.alarm.model_copy(update={"action": action})})
    run = make_run(recipe, now, tmp_path, Parts())
    steps: list[int] = []
    notes: list[str] = []

    async def save(version: int, *, keep: int) -> None:
        steps.append(version)
        checkpoints.committed_step = version

    async def steps_until_stopped(**_: Any) -> int:
        run._log.is_in_doubt = is_in_doubt
        stopped.is_stopping = True
        return 3

    stopped = SimpleNamespace(is_stopping=False, stop=lambda: None, train=steps_until_stopped)
    run._checkpoints = checkpoints = cast(Any, SimpleNamespace(save=save, committed_step=committed))
    run._controls.num_steps = 9  # type: ignore[misc]
    run._controls.before_step = None  # type: ignore[method-assign,assignment]
    run._view.note = notes.append  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        run_virtually(run._train(cast(Trainer, stopped), 0))
    assert steps == saved
    kept = "" if saved else " (saved: step 2, from before a sign of cheating)"
    assert notes[-1] == f"stopped after step 3{kept}; go on with --run {tmp_path} --resume"


def test_a_taken_port_costs_no_run_folder(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else the next try, with another port, would be told that there is a run in it."""
    monkeypatch.setattr(run_module, "RunInputs", lambda recipe: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        on_taken = recipe.model_copy(
            update={"metrics": recipe.metrics.model_copy(update={"port": taken.getsockname()[1]})}
        )
        with pytest.raises(UserError, match="cannot be opened"):
            train(on_taken, run_folder=tmp_path / "run", resume=False, address="auto")
    assert not (tmp_path / "run").exists()
