"""What a recipe runs and asks for. Ray is not started."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors.config import FaultsConfig
from actors.fleet import Fleet
from actors.signs_of_life import REPORT_S
from actors.worker import ActorSetup
from core.errors import UserError, WorkerError
from core.worker_report import WorkerReport
from learner.config import LoRAConfig
from orchestration.cluster import launch
from orchestration.cluster.placement import workers_of
from orchestration.recipe.config import ClusterConfig, Recipe, WeightPushConfig
from orchestration.recipe.loading import load_recipe
from tests.fakes import FakeWorker, run_virtually
from tests.recipes import MANY_WORKERS


class Unwatched:
    """Tells nobody."""

    def worker_event(self, worker: str, event: str) -> None: ...

    def worker_report(self, worker: str, report: WorkerReport) -> None: ...


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "tiny.toml").write_text(MANY_WORKERS, encoding="utf-8")
    return load_recipe(tmp_path / "tiny.toml")


def test_a_cluster_that_is_too_small_is_refused_at_once(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(UserError, match="asks Ray for 7.95 CPU, 2 GPU, but the cluster has 4 CPU, 0 GPU"):
        launch._require_room(workers_of(recipe))


def test_where_nodes_are_added_only_the_learner_must_fit_at_once(recipe: Recipe) -> None:
    growing = recipe.model_copy(update={"cluster": ClusterConfig(autoscaling=True)})
    assert [worker.name for worker in launch._needed_at_once(growing)] == ["learner-0", "learner-1"]
    assert launch._needed_at_once(recipe) == workers_of(recipe)


@pytest.mark.parametrize(("autoscaling", "expected"), [(False, "learners-node"), (True, None)])
def test_rollout_workers_name_the_learners_node_only_where_none_is_added(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, autoscaling: bool, expected: str | None
) -> None:
    """Ray's autoscaler starts no node for a worker that names one (`tests/end_to_end/test_autoscaling_real.py`)."""
    named: list[str | None] = []
    monkeypatch.setattr(
        launch, "RolloutHandle", lambda name, setup, *, near_node, **rest: named.append(near_node)
    )
    inputs: Any = SimpleNamespace(model_source=Path("tiny"), reward_sources={})
    placed = recipe.model_copy(update={"cluster": ClusterConfig(autoscaling=autoscaling)})
    _, fleets = launch._fleets(placed, None, "learners-node", inputs, Unwatched())
    fleets["rollout"]._launch("rollout-0")
    assert named == [expected]


def test_engines_without_a_learner_take_all_weights_and_no_adapters(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A saved policy's adapters are merged into its weights (`learner/saved_policy.py`)."""
    ranks: list[int | None] = []

    def launch_rollout(name: str, setup: ActorSetup, **rest: Any) -> FakeWorker:
        ranks.append(setup.adapter_rank)
        return FakeWorker(name)

    monkeypatch.setattr(launch, "RolloutHandle", launch_rollout)
    monkeypatch.setattr(launch, "ScorerHandle", lambda name, *rest, **more: FakeWorker(name))
    monkeypatch.setattr(launch, "node_id", lambda: "node")
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 100.0, "GPU": 100.0})
    inputs: Any = SimpleNamespace(model_source=Path("tiny"), reward_sources={})
    adapters = recipe.model_copy(
        update={
            "learner": recipe.learner.model_copy(update={"lora": LoRAConfig(rank=4)}),
            "weight_push": WeightPushConfig(form="adapters"),
        }
    )
    assert adapters.pushed_adapter_rank == 4

    async def start() -> None:
        async with launch.started_rollouts(adapters, inputs, Unwatched()):
            pass

    run_virtually(start())
    assert ranks == [None, None]


class ReportingLearner:
    async def reports(self) -> dict[str, WorkerReport]:
        await asyncio.sleep(1.0)
        return {"learner-0": await FakeWorker().report(1.0)}


def test_workers_of_all_kinds_are_asked_for_reports_at_the_same_time() -> None:
    fleets = {
        kind: Fleet[Any](kind, FakeWorker, faults=FaultsConfig(), start_s=100)
        for kind in ("rollout", "reference")
    }

    async def ask() -> tuple[set[str], float]:
        for fleet in fleets.values():
            await fleet.start(2)
            fleet.slots[1].handle.is_silent = True
        learner, pool = cast(Any, ReportingLearner()), cast(Any, None)
        reports = await launch.Workers(learner=learner, pool=pool, fleets=fleets).reports()
        took_s = asyncio.get_running_loop().time()
        await asyncio.gather(*(fleet.close() for fleet in fleets.values()))
        return set(reports), took_s

    assert run_virtually(ask()) == ({"learner-0", "rollout-0", "reference-0"}, REPORT_S)


def test_of_several_workers_that_fail_the_clear_reason_counts() -> None:
    async def fail(error: Exception, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        raise error

    starts = (fail(WorkerError("rollout-0 died"), 1), fail(UserError("another architecture"), 9))
    with pytest.raises(UserError, match="another architecture"):
        run_virtually(launch._all_up(*starts, asyncio.sleep(500)))


def test_a_worker_that_fails_alone_is_not_waited_past_for_long() -> None:
    ended: list[str] = []

    async def hang() -> None:
        try:
            await asyncio.sleep(500)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def fail() -> None:
        raise WorkerError("rollout-0 died")

    async def start() -> float:
        with pytest.raises(WorkerError, match="rollout-0 died"):
            await launch._all_up(fail(), hang())
        await asyncio.sleep(0)
        return asyncio.get_running_loop().time()

    assert run_virtually(start()) == pytest.approx(launch.CLEARER_REASON_S)
    assert ended == ["cancelled"]
