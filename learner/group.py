"""All ranks of the learner as one object in the driver: every wait with a deadline and a culprit."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from core.errors import LearnerLost, UserError, WorkerLost, WorkerSilent
from core.messages import Completion, Demonstration, Float32s, RolloutGroup
from core.process_state import ProcessState, process_state
from core.remote import actor_options, answer
from core.weights import WeightManifest
from core.worker_report import WorkerReport
from learner.config import LiveLearnerConfig
from learner.worker import LearnerSetup, LearnerWorker, RankProcess

LAST_WORDS_S = 5.0
"""For the other ranks once one has failed: who was killed is heard of after those who were waiting for it."""
LOOK_S = 30.0
"""For a process that looks at a silent rank from outside to start and to say what it sees."""
LONGER_S = 60.0
"""How much longer ranks wait for each other than the driver for all of them: who gives up first is asked why."""


class LearnerGroup:
    """Every call goes to every rank, because ZeRO's collectives need them all.

    Raises `LearnerLost` if a rank died or was silent, and says what the silent ones do: first the one that keeps
    the others waiting. The group is of no use then, until `restart`.
    """

    def __init__(
        self, setup: LearnerSetup, scheduling: Sequence[Any], *, learn_s: float, push_s: float
    ) -> None:
        """Ask Ray for the ranks' processes, one at each scheduling place."""
        self._setup = setup
        self._scheduling = scheduling
        self._learn_s = learn_s
        self._push_s = push_s
        self._actors = self._launch()
        self._is_up = False
        self._processes: list[RankProcess] = []
        self._turn = asyncio.Lock()
        """A rank does one thing at a time. Who waits for its turn has no deadline yet: who has it does."""

    async def start(self) -> None:
        """Load the networks on every rank. Raises `UserError` or `WorkerError`, naming the rank."""
        async with self._turn:
            await self._start()

    async def _start(self) -> None:
        self._processes = await self._ask("identity", what="starting", deadline_s=self._setup.deadline_s)
        [(address, port)] = await self._ask(
            "rendezvous", what="starting", deadline_s=self._setup.deadline_s, num_ranks=1
        )
        collective_s = max(self._setup.deadline_s, self._learn_s, self._push_s) + LONGER_S
        await self._ask(
            *("start", self._setup, address, port, collective_s),
            what="starting",
            deadline_s=self._setup.deadline_s,
        )
        self._is_up = True

    async def restart(self) -> None:
        """New processes with the untrained networks, in the place of the old ones."""
        self.kill()  # before its turn: whoever has it may be waiting for a silent rank
        async with self._turn:
            self._actors = self._launch()
            await self._start()

    def kill(self) -> None:
        """End every rank, whatever it does."""
        self._is_up = False
        self._processes = []
        for actor in self._actors:
            ray.kill(actor, no_restart=True)

    async def train_step(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """One optimizer phase; metrics, the same from every rank."""
        reference = ray.put(list(groups))
        metrics = await self._all("train_step", reference, what="learning", deadline_s=self._learn_s)
        first: dict[str, float] = metrics[0]
        return first

    async def pack_weights(self) -> tuple[WeightManifest, dict[str, float]]:
        """Lay the present weights out for the rollout workers."""
        answers = await self._all("pack_weights", what="packing weights", deadline_s=self._push_s)
        manifest, timing = answers[0]
        assert manifest is not None
        return manifest, timing

    async def reference_logprobs(self, texts: Sequence[Completion | Demonstration]) -> list[Float32s]:
        """Log-probs of texts under the base below the adapters."""
        answers = await self._all(
            "reference_logprobs", ray.put(list(texts)), what="scoring as reference", deadline_s=self._learn_s
        )
        logprobs: list[Float32s] = answers[0]
        return logprobs

    async def mean_nll(self, texts: Sequence[Demonstration]) -> float:
        """Mean negative log-likelihood of texts under the present policy, in nats a token."""
        answers = await self._all(
            "mean_nll", list(texts), what="scoring held-out texts", deadline_s=self._learn_s
        )
        return float(answers[0])

    async def configure(self, config: LiveLearnerConfig) -> None:
        """From the next step on."""
        await self._all("configure", config, what="changing settings", deadline_s=self._learn_s)

    async def save(self, folder: Path) -> None:
        await self._all("save", folder, what="saving", deadline_s=self._learn_s)

    async def load(self, folder: Path) -> int:
        versions = await self._all("load", folder, what="loading a checkpoint", deadline_s=self._learn_s)
        if len(set(versions)) != 1:
            raise UserError(
                f"{folder}: its ranks are at different versions {versions}; use an older checkpoint"
            )
        return int(versions[0])

    async def save_model(self, folder: Path) -> None:
        await self._all("save_model", folder, what="saving the model", deadline_s=self._learn_s)

    async def reports(self) -> dict[str, WorkerReport]:
        """What each rank says of itself, by its stable name. Nothing from ranks that are at work."""
        if self._turn.locked():
            return {}
        reports = await self._all("report", what="a report", deadline_s=60)
        return {f"learner-{rank}": report for rank, report in enumerate(reports)}

    async def close(self) -> None:
        """Let the ranks give back what they hold, if they came up."""
        if self._is_up:
            await self._all("close", what="closing", deadline_s=30)

    def _launch(self) -> list[Any]:
        setup = self._setup
        environment = {"LOCAL_SIZE": str(setup.config.world_size)}
        remote_class: Any = ray.remote(LearnerWorker)
        return [
            remote_class.options(
                **actor_options(f"learner-{rank}", setup.config.resources, environment),
                scheduling_strategy=place,
            ).remote(rank)
            for rank, place in enumerate(self._scheduling)
        ]

    async def _all(self, method: str, *arguments: Any, what: str, deadline_s: float) -> list[Any]:
        """Call every rank in its turn. The deadline starts with the call."""
        async with self._turn:
            return await self._ask(method, *arguments, what=what, deadline_s=deadline_s)

    async def _ask(
        self, method: str, *arguments: Any, what: str, deadline_s: float, num_ranks: int | None = None
    ) -> list[Any]:
        """Call every rank, or the first ones, and wait for all; the first error ends the wait."""
        calls = [
            asyncio.ensure_future(
                answer(
                    getattr(actor, method).remote(*arguments),
                    who=f"learner rank {rank}",
                    what=what,
                    deadline_s=deadline_s,
                )
            )
            for rank, actor in enumerate(self._actors[:num_ranks])
        ]
        try:
            return list(await asyncio.gather(*calls))
        except Exception as error:
            lost = [one for one in await _last_words(calls) if isinstance(one, WorkerLost)]
            if not lost or isinstance(error, UserError):
                raise
            died = next((one for one in lost if not isinstance(one, WorkerSilent)), None)
            raise LearnerLost(str(died or await self._silence(calls))) from lost[0]
        finally:
            for call in calls:
                call.cancel()

    async def _silence(self, calls: Sequence[asyncio.Future[Any]]) -> str:
        """What each rank does that did not answer, and first who keeps the others waiting."""
        errors = [call.exception() if call.done() else None for call in calls]
        silent = {rank: error for rank, error in enumerate(errors) if isinstance(error, WorkerSilent)}
        if not self._processes:
            return "; ".join(map(str, silent.values()))
        states = await asyncio.gather(*(self._state(self._processes[rank]) for rank in silent))
        said = [
            (state.in_collective, f"{error}: {'waits for the others ' * state.in_collective}{state.said}")
            for error, state in zip(silent.values(), states, strict=True)
        ]
        return "; ".join(text for _, text in sorted(said))

    async def _state(self, process: RankProcess) -> ProcessState:
        """Seen by another process on its node, because a rank in a long call answers nothing itself."""
        there = NodeAffinitySchedulingStrategy(process.node, soft=False)
        look: Any = ray.remote(process_state)
        seen = look.options(num_cpus=0, scheduling_strategy=there).remote(process.pid, process.stacks)
        try:
            state: ProcessState = await answer(seen, who="its node", what="looking at it", deadline_s=LOOK_S)
            return state
        except WorkerLost as error:
            return ProcessState(f"cannot be looked at: {error}", in_collective=False)


async def _last_words(calls: Sequence[asyncio.Future[Any]]) -> list[BaseException]:
    """After the first failure: all that fail within a moment, because one that died makes the others fail, too."""
    done, _ = await asyncio.wait(calls, timeout=LAST_WORDS_S)
    errors = [call.exception() for call in calls if call in done and not call.cancelled()]
    return [error for error in errors if error is not None]
