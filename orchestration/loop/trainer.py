"""The training loop: prompts out, rollouts in, learn, publish weights.

    source.group -> RolloutQueue -> learner.train_step -> push_weights -+
         ^                                                              |
         +---------------------- new policy version --------------------+

A source that does not sample (a dataset) needs no new weights but for the steps that are evaluated.

Knows no GPU and no Ray: it is given an actor pool and a learner, which are Ray workers in production and
plain objects in tests.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from actors.rollout import RolloutPool
from core.messages import RolloutGroup
from core.weights import WeightManifest
from orchestration.loop.rollout_queue import RolloutQueue
from orchestration.loop.sources import GroupSource
from orchestration.recipe.config import DeadlinesConfig


class LearnerHandle(Protocol):
    """The learner:

    metrics = await learner.train_step(groups)      # version v -> v + 1
    manifest, timing = await learner.pack_weights() # for the rollout workers
    """

    async def train_step(self, groups: Sequence[RolloutGroup]) -> dict[str, float]: ...

    async def pack_weights(self) -> tuple[WeightManifest, dict[str, float]]: ...


class StepLedger(Protocol):
    """Who remembers which groups each step trained on: `orchestration.ledger.ledger.Ledger`."""

    def pending(self, stop: int) -> Iterable[int]:
        """The groups to start, until the steps up to `stop` have theirs."""

    def begun_before(self, step: int) -> Sequence[int]:
        """The groups that the step was begun with before a crash: it takes the same ones again."""

    def begin_step(self, step: int, groups: Mapping[int, RolloutGroup]) -> None:
        """On disk once it returns."""


class Observer(Protocol):
    """Who is told what the loop does: logs, metrics, the terminal."""

    def phase(self, name: str) -> None: ...

    async def step(
        self,
        version: int,
        groups: Sequence[RolloutGroup],
        learning: dict[str, float],
        timing: dict[str, float],
    ) -> None: ...


class Trainer:
    """Trains from one policy version to another."""

    def __init__(
        self,
        *,
        pool: RolloutPool,
        learner: LearnerHandle,
        source: GroupSource,
        observer: Observer,
        ledger: StepLedger,
        prompts_per_step: int,
        max_lag: int,
        max_overtaken: int = 0,
        deadlines: DeadlinesConfig,
        evaluate_every: int = 0,
    ) -> None:
        self._pool = pool
        self._learner = learner
        self._source = source
        self._observer = observer
        self._ledger = ledger
        self._prompts_per_step = prompts_per_step
        self._max_lag = max_lag
        self._max_overtaken = max_overtaken
        self._deadlines = deadlines
        self._evaluate_every = evaluate_every
        self.is_stopping = False
        """Told to end after the step in progress."""
        self._stop = 0
        self._running = asyncio.Event()
        self._running.set()

    def stop(self) -> None:
        """End after the step in progress."""
        self.is_stopping = True
        self._running.set()

    def pause(self) -> None:
        """Stand still after the step in progress. What is being sampled is finished."""
        self._running.clear()

    def resume(self) -> None:
        self._running.set()

    @property
    def is_paused(self) -> bool:
        return not self._running.is_set()

    def retarget(self, *, stop: int, evaluate_every: int) -> None:
        """Call between two steps: end at this version, if that is earlier, and evaluate so often."""
        self._stop = min(self._stop, stop)
        self._evaluate_every = evaluate_every

    async def train(
        self,
        *,
        start: int,
        stop: int,
        after_step: Callable[[int], Awaitable[None]],
        before_step: Callable[[int], Awaitable[None]] | None = None,
    ) -> int:
        """Take the policy from version `start` to `stop`; the version reached, less if told to stop.

        The rollout workers must hold version `start`. `before_step` is awaited with the step that comes next, the
        version before it plus one, and `after_step` with each new version.
        """
        self._stop = stop
        queue = RolloutQueue(
            groups_per_step=self._prompts_per_step, max_lag=self._max_lag, max_overtaken=self._max_overtaken
        )
        producer = asyncio.create_task(self._start_rollouts(queue, stop))
        version = start
        started = self._begin_anew(queue)
        try:
            while version < self._stop and not self.is_stopping:
                if self.is_paused:
                    self._observer.phase("pause")
                    await self._running.wait()
                    started = self._begin_anew(queue)
                    continue
                if before_step is not None:
                    await before_step(version + 1)
                timing = {"started": started}
                self._observer.phase("rollout")
                groups, flow = await self._take_step(queue, version + 1)
                timing["rollout_s"] = _lap(timing)  # evaluations and checkpoints since the last step included
                self._observer.phase("learn")
                learning = await self._learner.train_step(groups)
                timing["learn_s"] = _lap(timing)
                version += 1
                if self._source.on_policy or version == self._stop or self._is_evaluated(version):
                    self._observer.phase("push")
                    timing |= await self.push_weights()
                timing["push_s"] = _lap(timing)
                started = timing["started"]  # what follows runs beside the next step's rollouts
                queue.release_step()
                flow["wait_policy_s"] = queue.take_idle_s()
                await self._observer.step(
                    version, groups, learning, timing | flow | self._pool.take_figures()
                )
                await after_step(version)
        finally:
            producer.cancel()
            await asyncio.gather(producer, return_exceptions=True)
            await queue.close()
        return version

    def _begin_anew(self, queue: RolloutQueue) -> float:
        """Now, from which on the next step is timed. Standing still is nobody's wait, and what was sampled
        meanwhile is not of the step's time."""
        queue.take_idle_s()
        self._pool.take_figures()
        return time.perf_counter()

    async def _take_step(self, queue: RolloutQueue, step: int) -> tuple[list[RolloutGroup], dict[str, float]]:
        """The groups of the step, in the ledger; how long they were waited for, and how the queue is."""
        since = time.perf_counter()
        taken = await queue.take_step(
            step, again=self._ledger.begun_before(step), deadline_s=self._deadlines.rollout_s
        )
        flow: dict[str, float] = {
            "wait_batch_s": time.perf_counter() - since,
            "queue_depth": queue.num_running,
            "groups_overtaken": queue.num_overtaken,
        }
        self._ledger.begin_step(step, taken)
        return list(taken.values()), flow

    async def push_weights(self) -> dict[str, float]:
        """Bring every rollout worker to the learner's version, verified; how long each part took."""
        timing, reports = await self._pool.push_weights(self._learner.pack_weights)
        if not reports:  # every worker died of it or with it; who takes its place catches up
            return timing
        slowest = max(reports, key=lambda report: report.load_s + report.verify_s)
        gap = max(report.probe_gap for report in reports)
        redone_tokens = sum(report.redone_tokens for report in reports)
        return timing | {
            **{"load_s": slowest.load_s, "verify_s": slowest.verify_s},
            **{"probe_gap": gap, "redone_tokens": redone_tokens},
        }

    def _is_evaluated(self, version: int) -> bool:
        """Whether the rollout workers are asked what this version does on the held-out prompts."""
        return self._evaluate_every > 0 and version % self._evaluate_every == 0

    async def _start_rollouts(self, queue: RolloutQueue, stop: int) -> None:
        """Start groups as tickets come free: those that take the policy to version `stop`."""
        for number in self._ledger.pending(stop):
            await queue.start(number, lambda number=number: self._source.group(number))  # type: ignore[misc]


def _lap(timing: dict[str, float]) -> float:
    """Seconds since the last lap."""
    now = time.perf_counter()
    seconds = now - timing["started"]
    timing["started"] = now
    return seconds
