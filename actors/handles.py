"""The driver's end of the actors' processes: one handle a worker, each wait with a deadline and a culprit."""

from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.config import ReferenceConfig, RewardConfig
from actors.engine_options import engine_environment
from actors.fleet import Fleet
from actors.weight_relay import WeightRelay
from actors.worker import ActorSetup, RolloutWorker, ScorerWorker
from core.errors import RewardError, WorkerLost, WorkerSilent
from core.hub import ModelSource
from core.messages import Completion, Demonstration, SampleRequest
from core.remote import actor_options, answer
from core.weights import WeightManifest
from core.worker_report import WorkerReport

if TYPE_CHECKING:
    from actors.sampler import PullReport

CONTROL = "control"
"""Ray's name for the calls that must not wait behind those that sample or score."""
LAST_WORDS_S = 5.0
"""For a silent worker to say what it is doing."""
MIN_CONCURRENCY = 64
"""Groups that one rollout worker holds open at a time, each in a thread that waits for its completions."""
SCORER_CONCURRENCY = 512
"""Calls that one scorer holds open at a time; they wait, they do not compute."""


class _Handle:
    """What the handles of all kinds have in common."""

    def __init__(self, name: str, actor: Any, deadline_s: float) -> None:
        self.name = name
        self._actor = actor
        self._deadline_s = deadline_s

    async def ready(self, deadline_s: float) -> None:
        await self._answer(self._actor.ready.remote(), "starting", deadline_s)

    async def ping(self, deadline_s: float) -> WorkerReport:
        report: WorkerReport = await self._answer(self._control("ping"), "a sign of life", deadline_s)
        return report

    async def report(self, deadline_s: float) -> WorkerReport:
        report: WorkerReport = await self._answer(self._control("report"), "a report", deadline_s)
        return report

    def kill(self) -> None:
        ray.kill(self._actor, no_restart=True)

    def _control(self, method: str, *arguments: Any) -> Any:
        return getattr(self._actor, method).options(concurrency_group=CONTROL).remote(*arguments)

    async def _answer(self, reference: Awaitable[Any], what: str, deadline_s: float | None = None) -> Any:
        deadline_s = self._deadline_s if deadline_s is None else deadline_s
        try:
            return await answer(reference, who=self.name, what=what, deadline_s=deadline_s)
        except WorkerSilent as error:
            raise WorkerSilent(f"{error}; {await self._whereabouts()}") from None

    async def _whereabouts(self) -> str:
        """What a silent worker is doing, if its process can still say so."""
        try:
            asked = self._control("busy_threads")
            return f"its threads: {await answer(asked, who=self.name, what='', deadline_s=LAST_WORDS_S)}"
        except WorkerLost:
            return "its process does not answer at all"


def _remote(worker: type, **options: Any) -> Any:
    """A class whose actors answer control calls beside the others."""
    remote: Any = ray.remote  # its overloads do not know concurrency groups
    return remote(concurrency_groups={CONTROL: 4})(worker).options(**options)


class RolloutHandle(_Handle):
    """A rollout worker as the driver sees it."""

    def __init__(
        self, name: str, setup: ActorSetup, *, near_node: str | None, relay: WeightRelay, deadline_s: float
    ) -> None:
        """`near_node`: Ray's id of the learner's node, whose memory is shared; elsewhere `relay` brings weights.
        None: wherever there is room. Ray's autoscaler starts no node for a worker that names one."""
        rollout = setup.rollout
        options = actor_options(name, rollout.resources, engine_environment(rollout))
        place: Any = "DEFAULT"
        if near_node is not None:
            place = NodeAffinitySchedulingStrategy(near_node, soft=True, _spill_on_unavailable=True)
        concurrency = max(MIN_CONCURRENCY, rollout.max_concurrent_sequences)
        actor = _remote(RolloutWorker, max_concurrency=concurrency, scheduling_strategy=place, **options)
        super().__init__(name, actor.remote(setup), deadline_s)
        self._relay = relay
        self._node = ""

    async def ready(self, deadline_s: float) -> None:
        self._node = await self._answer(self._actor.ready.remote(), "starting", deadline_s)

    async def sample(self, requests: Sequence[SampleRequest]) -> AsyncGenerator[Completion, None]:
        """Completions as they finish. Who stops listening stops the sampling, too."""
        missing = {request.request_id for request in requests}
        stream = self._actor.sample.options(num_returns="streaming").remote(list(requests))
        try:
            while missing:
                reference = await self._answer(stream.__anext__(), "sampling")
                completion: Completion = await self._answer(reference, "sampling")
                missing.remove(completion.request_id)
                yield completion
        finally:
            if missing:
                self._control("abort", sorted(missing))

    async def pull_weights(self, manifest: WeightManifest, *, deadline_s: float) -> "PullReport":
        """Returns once the worker serves the new version, verified."""
        elsewhere = () if self._node == manifest.node else (self._relay.fetch(manifest),)
        pull = self._control("pull_weights", manifest, *elsewhere)
        what = f"pulling weights of version {manifest.policy_version}"
        report: PullReport = await self._answer(pull, what, deadline_s)
        return report


class ScorerHandle(_Handle):
    """One replica of a reference scorer or of a reward server."""

    def __init__(
        self,
        name: str,
        setup: ActorSetup,
        config: ReferenceConfig | RewardConfig,
        source: ModelSource | None,
        *,
        deadline_s: float,
    ) -> None:
        options = actor_options(name, config.resources)
        actor = _remote(ScorerWorker, max_concurrency=SCORER_CONCURRENCY, **options)
        super().__init__(name, actor.remote(setup, config, source), deadline_s)

    async def score(self, completion: Completion | Demonstration) -> Any:
        """One float for a reward, [T] float32 for the reference."""
        return await self._answer(self._actor.score.remote(completion), "scoring")


class ScorerFleet(Fleet[ScorerHandle]):
    """All replicas of one scorer. They are alike, so a completion is scored by whichever lives."""

    async def score(self, completion: Completion | Demonstration) -> Any:
        """One float for a reward, [T] float32 for the reference. Raises `RewardError` after the last retry."""
        for _ in range(self.faults.reward_retries):
            try:
                return await self.call(lambda replica: replica.score(completion))
            except RewardError:
                continue
        return await self.call(lambda replica: replica.score(completion))
