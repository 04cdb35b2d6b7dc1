"""From a recipe to running workers: join Ray, reserve every worker's resources at once, start them."""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.fleet import Fleet
from actors.handles import RolloutHandle, ScorerFleet, ScorerHandle
from actors.rollout import RolloutPool, WeightedReward
from actors.weight_relay import WeightRelay
from actors.worker import ActorSetup
from core.errors import UserError, WorkerError
from core.remote import answer, node_id
from core.worker_report import WorkerReport
from learner.group import LearnerGroup
from orchestration.cluster.adapter_reference import AdapterReference
from orchestration.cluster.learner_setup import learner_setup
from orchestration.cluster.node_versions import require_same_versions
from orchestration.cluster.placement import Worker, workers_of
from orchestration.inputs import RunInputs
from orchestration.recipe.config import Recipe

OBJECT_STORE_BYTES = 200 * 2**20
"""Of a local Ray. Rollouts are small, and weights do not go through the object store."""
CLEARER_REASON_S = 20.0
"""For other workers to fail too, once one has: about what starting one takes."""


class Watcher(Protocol):
    """Who is told what becomes of the workers."""

    def worker_event(self, worker: str, event: str) -> None:
        """It joins, dies or leaves."""

    def worker_report(self, worker: str, report: WorkerReport) -> None:
        """A sign of life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Everything that runs for a recipe."""

    learner: LearnerGroup
    pool: RolloutPool
    fleets: dict[str, Fleet[Any]]
    """Workers that may come and go, by kind: rollout, reference, reward-NAME."""

    async def reports(self) -> dict[str, WorkerReport]:
        """What every worker process says of itself, by its stable name."""
        kinds = [fleet.reports() for fleet in self.fleets.values()]
        said = await asyncio.gather(self.learner.reports(), *kinds)
        return {name: report for reports in said for name, report in reports.items()}

    async def close(self) -> None:
        """End every worker that is not the learner's."""
        await asyncio.gather(*(fleet.close() for fleet in self.fleets.values()))


def starts_own(address: str | None) -> bool:
    """Whether the cluster will be this process's own, all of it on this machine."""
    return address is None and "RAY_ADDRESS" not in os.environ


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """A connection to Ray: to a running cluster, or to one of this process's own, which ends with it.

    Raises `UserError` if no cluster answers, or if its nodes run different versions.
    """
    if starts_own(address):
        mask = os.umask(0o077)  # Ray writes its token file with the mask it finds
        try:
            ray.init(
                address="local",  # left out, Ray would join whatever cluster was last started on this machine
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _system_config={"gcs_rpc_server_reconnect_timeout_s": 60},
            )
        finally:
            os.umask(mask)
    else:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise UserError(
                f"no Ray cluster answers at {address or os.environ['RAY_ADDRESS']}: {error}"
            ) from error
    try:
        require_same_versions()
        yield
    finally:
        ray.shutdown()


@asynccontextmanager
async def started(recipe: Recipe, inputs: RunInputs, watcher: Watcher) -> AsyncIterator[Workers]:
    """All workers, up and loaded. They end with the context.

    Raises `UserError` if the cluster is too small, `WorkerError` naming the worker that does not come up.
    """
    _require_room(_needed_at_once(recipe))
    async with _placed_learner(recipe, inputs) as (learner, node):
        pool, fleets = _fleets(recipe, learner, node, inputs, watcher)
        workers = Workers(learner=learner, pool=pool, fleets=fleets)
        try:
            await _all_up(learner.start(), *_starts(recipe, fleets))
            yield workers
        finally:
            await workers.close()


@asynccontextmanager
async def started_learner(recipe: Recipe, inputs: RunInputs) -> AsyncIterator[LearnerGroup]:
    """The learner without anybody else, up and loaded. It ends with the context. Raises as `started` does."""
    _require_room([worker for worker in workers_of(recipe) if worker.kind == "learner"])
    async with _placed_learner(recipe, inputs) as (learner, _):
        await learner.start()
        yield learner


@asynccontextmanager
async def started_rollouts(recipe: Recipe, inputs: RunInputs, watcher: Watcher) -> AsyncIterator[RolloutPool]:
    """Everybody but the learner, up and loaded. They end with the context. Raises as `started` does. Whatever the
    recipe says, the reference has scorers of its own and all weights are pushed: a saved policy has no adapters."""
    recipe = recipe.model_copy(
        update={
            "reference": recipe.reference.model_copy(update={"adapters_off": False}),
            "weight_push": recipe.weight_push.model_copy(update={"form": "merged"}),
        }
    )
    _require_room([worker for worker in workers_of(recipe) if worker.kind != "learner"])
    pool, fleets = _fleets(recipe, None, node_id(), inputs, watcher)
    try:
        await _all_up(*_starts(recipe, fleets))
        yield pool
    finally:
        await asyncio.gather(*(fleet.close() for fleet in fleets.values()))


@asynccontextmanager
async def _placed_learner(recipe: Recipe, inputs: RunInputs) -> AsyncIterator[tuple[LearnerGroup, str]]:
    """The learner's processes on their way, and Ray's id of their node."""
    ranks = [worker for worker in workers_of(recipe) if worker.kind == "learner"]
    group = await _reserve(ranks, recipe.deadlines.start_s)
    learner = LearnerGroup(
        learner_setup(recipe, inputs),
        [PlacementGroupSchedulingStrategy(group, rank) for rank in range(recipe.learner.world_size)],
        learn_s=recipe.deadlines.learn_s,
        push_s=recipe.deadlines.push_s,
    )
    try:
        try:
            yield learner, _node_of(group)
        except BaseException:
            # A learner that cannot close any more must not hide why the run failed.
            with suppress(WorkerError):
                await learner.close()
            raise
        await learner.close()
    finally:
        remove_placement_group(group)


def _needed_at_once(recipe: Recipe) -> list[Worker]:
    """Who must fit the cluster as it is: for others than the learner, an autoscaler adds nodes."""
    plan = workers_of(recipe)
    return [worker for worker in plan if worker.kind == "learner"] if recipe.cluster.autoscaling else plan


def _require_room(plan: list[Worker]) -> None:
    """Raises `UserError` if the whole cluster, were it idle, could not hold the workers."""
    wanted: Counter[str] = Counter()
    for worker in plan:
        wanted.update(worker.bundle)
    offered = ray.cluster_resources()  # type: ignore[no-untyped-call]
    short = {name: amount for name, amount in wanted.items() if amount > offered.get(name, 0.0) + 1e-6}
    if short:
        need = ", ".join(f"{amount:g} {name}" for name, amount in short.items())
        have = ", ".join(f"{offered.get(name, 0.0):g} {name}" for name in short)
        raise UserError(
            f"the recipe asks Ray for {need}, but the cluster has {have}. Lower the workers or their "
            "resources, or add nodes."
        )


async def _reserve(ranks: list[Worker], deadline_s: float) -> PlacementGroup:
    """A placement group for the learner: either every rank has its place, or none starts. On as few nodes as can
    be. The other workers come and go, so each asks Ray for itself."""
    group: PlacementGroup = placement_group([rank.bundle for rank in ranks], strategy="PACK")
    try:
        await answer(group.ready(), who="Ray", what="placing the learner", deadline_s=deadline_s)
    except WorkerError as error:
        remove_placement_group(group)
        free = ray.available_resources()  # type: ignore[no-untyped-call]
        raise WorkerError(f"{error}: asked for {[rank.bundle for rank in ranks]}, free are {free}") from error
    return group


def _fleets(
    recipe: Recipe, learner: LearnerGroup | None, node: str, inputs: RunInputs, watcher: Watcher
) -> tuple[RolloutPool, dict[str, Fleet[Any]]]:
    """Fleets that have no workers yet, by kind. `learner`: whose base may be the reference; `node`: where rollout
    workers should be."""
    deadlines = recipe.deadlines
    setup = ActorSetup(
        model_source=inputs.model_source,
        model=recipe.model,
        rollout=recipe.rollout,
        adapter_rank=recipe.pushed_adapter_rank,
        drain_s=recipe.weight_push.drain_s,
    )
    common: dict[str, Any] = {
        "faults": recipe.faults,
        "start_s": deadlines.start_s,
        "on_event": watcher.worker_event,
        "on_report": watcher.worker_report,
    }

    relay = WeightRelay()
    near = None if recipe.cluster.autoscaling else node

    def launch_rollout(name: str) -> RolloutHandle:
        return RolloutHandle(name, setup, near_node=near, relay=relay, deadline_s=deadlines.rollout_s)

    def launch_scorer(kind: str, config: Any) -> Callable[[str], ScorerHandle]:
        source = inputs.reward_sources.get(kind)
        return lambda name: ScorerHandle(name, setup, config, source, deadline_s=deadlines.rollout_s)

    rollout = Fleet("rollout", launch_rollout, **common)
    scorers = {
        kind: ScorerFleet(kind, launch_scorer(kind, config), **common)
        for kind, config in _scorer_configs(recipe).items()
    }
    rewards = {
        reward.name: WeightedReward(server=scorers[f"reward-{reward.name}"], weight=reward.weight)
        for reward in recipe.rewards
    }
    pool = RolloutPool(
        rollout,
        AdapterReference(learner) if learner and recipe.reference.adapters_off else scorers["reference"],
        rewards,
        max_retries=recipe.faults.max_retries,
        push_s=deadlines.push_s,
    )
    return pool, {"rollout": rollout, **scorers}


def _starts(recipe: Recipe, fleets: dict[str, Fleet[Any]]) -> list[Coroutine[Any, Any, None]]:
    """As many workers of each kind as the recipe starts with."""
    kinds = Counter(worker.kind for worker in workers_of(recipe))
    return [fleet.start(kinds[kind]) for kind, fleet in fleets.items()]


async def _all_up(*starts: Coroutine[Any, Any, None]) -> None:
    """Wait until all are up. A model that is no good fails in several workers, each in its own words: after
    the first failure the others have a moment to give the user a clearer reason."""
    waiting = {asyncio.create_task(start) for start in starts}
    errors: list[BaseException] = []
    try:
        while waiting and not any(isinstance(error, UserError) for error in errors):
            patience_s = CLEARER_REASON_S if errors else None
            done, waiting = await asyncio.wait(
                waiting, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            errors += [error for task in done if (error := task.exception())]
    finally:
        for task in waiting:
            task.cancel()
    if errors:
        raise next((error for error in errors if isinstance(error, UserError)), errors[0])


def _scorer_configs(recipe: Recipe) -> dict[str, Any]:
    configs: dict[str, Any] = {f"reward-{reward.name}": reward for reward in recipe.rewards}
    return configs if recipe.reference.adapters_off else {"reference": recipe.reference, **configs}


def _node_of(group: PlacementGroup) -> str:
    """Ray's id of the node that the learner's first rank is on."""
    table = placement_group_table(group)
    node: str = table["bundles_to_node_id"][0]
    return node
