"""Who is told to be at fault when ranks of the learner do not answer, die or raise. Without Ray."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import RayError

from core.errors import LearnerLost, UserError
from core.process_state import ProcessState
from learner.config import LiveLearnerConfig
from learner.group import LAST_WORDS_S, LearnerGroup
from learner.worker import LearnerSetup, RankProcess
from tests.fakes import run_virtually

LEARN_S = 100.0
WAITS = ProcessState("at all_reduce (distributed_c10d.py:3007)", in_collective=True)
NAPS = ProcessState("at nap (reward.py:3)", in_collective=False)
STOPPED = ProcessState("process 7 is stopped, as by SIGSTOP", in_collective=False)

Answer = Callable[[], Coroutine[Any, Any, Any]]


class FakeRank:
    """A Ray worker that takes its answer to every call from a function."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __getattr__(self, method: str) -> "FakeRank":
        return self

    def remote(self, *arguments: Any) -> Coroutine[Any, Any, Any]:
        return self._answer()


SETTINGS = LiveLearnerConfig(kl_coef=0.1, kl_target=None, learning_rate=1e-3, num_steps=10)


async def silence() -> None:
    await asyncio.sleep(10_000)


async def done() -> dict[str, float]:
    return {"loss": 1.0}


def failing(error: Exception, after_s: float = 0.0) -> Answer:
    async def fail() -> None:
        await asyncio.sleep(after_s)
        raise error

    return fail


def outcome(
    monkeypatch: pytest.MonkeyPatch, answers: list[Answer], states: list[ProcessState]
) -> tuple[Exception, float]:
    """What `configure` raises when ranks answer like this, and when; `states`: how they look from outside."""
    monkeypatch.setattr(LearnerGroup, "_launch", lambda group: [FakeRank(answer) for answer in answers])

    async def state(group: LearnerGroup, process: RankProcess) -> ProcessState:
        return states[process.pid]

    monkeypatch.setattr(LearnerGroup, "_state", state)

    async def call() -> tuple[Exception, float]:
        group = LearnerGroup(cast(LearnerSetup, None), [], learn_s=LEARN_S, push_s=1)
        group._processes = [RankProcess(node="n", pid=rank, stacks=0) for rank, _ in enumerate(states)]
        with pytest.raises(Exception) as caught:
            await group.configure(SETTINGS)
        return caught.value, asyncio.get_running_loop().time()

    return run_virtually(call())


@pytest.mark.parametrize("culprit", [NAPS, STOPPED])
def test_who_keeps_the_others_waiting_is_named_first(
    monkeypatch: pytest.MonkeyPatch, culprit: ProcessState
) -> None:
    error, at_s = outcome(monkeypatch, [silence, silence, silence], [WAITS, WAITS, culprit])
    assert isinstance(error, LearnerLost)
    late = "did not answer within 100 s (changing settings)"
    assert str(error).split("; ") == [
        f"learner rank 2 {late}: {culprit.said}",
        f"learner rank 0 {late}: waits for the others {WAITS.said}",
        f"learner rank 1 {late}: waits for the others {WAITS.said}",
    ]
    assert at_s == pytest.approx(LEARN_S)


def test_only_who_did_not_answer_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    error, _ = outcome(monkeypatch, [done, silence], [NAPS, STOPPED])
    assert isinstance(error, LearnerLost)
    assert str(error) == f"learner rank 1 did not answer within 100 s (changing settings): {STOPPED.said}"


def test_before_the_ranks_are_known_the_silent_ones_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    error, _ = outcome(monkeypatch, [silence, done], [])
    assert isinstance(error, LearnerLost)
    assert str(error) == "learner rank 0 did not answer within 100 s (changing settings)"


def test_a_rank_that_died_is_named_and_not_those_that_waited_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [failing(RuntimeError("Connection closed by peer")), failing(RayError("worker died"), 1.0)]
    error, at_s = outcome(monkeypatch, answers, [WAITS, WAITS])
    assert isinstance(error, LearnerLost)
    assert str(error) == "learner rank 1 died (changing settings): worker died"
    assert at_s == pytest.approx(1.0)


@pytest.mark.parametrize("raised", [RuntimeError("a bug"), UserError("a bad model")])
def test_what_a_rank_raised_is_not_taken_for_a_loss(
    monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    """Although the others wait for it meanwhile."""
    error, at_s = outcome(monkeypatch, [silence, failing(raised)], [WAITS, NAPS])
    assert error is raised
    assert at_s == pytest.approx(LAST_WORDS_S)


def test_a_deadline_starts_with_the_call_and_ranks_at_work_are_not_asked_how_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rank does one thing after the other: who waited for that would take a busy rank for a silent one."""

    class OneAtATime(FakeRank):
        def __init__(self) -> None:
            super().__init__(self._work)
            self._turn = asyncio.Lock()

        async def _work(self) -> str:
            async with self._turn:
                await asyncio.sleep(0.7 * LEARN_S)
            return "done"

    monkeypatch.setattr(LearnerGroup, "_launch", lambda group: [OneAtATime()])

    async def scenario() -> tuple[Any, ...]:
        group = LearnerGroup(cast(LearnerSetup, None), [], learn_s=LEARN_S, push_s=1)
        first, second = (asyncio.ensure_future(group.configure(SETTINGS)) for _ in range(2))
        await asyncio.sleep(1.0)
        said = await group.reports()
        asked_at_s = asyncio.get_running_loop().time()
        await first
        await second
        return said, asked_at_s, asyncio.get_running_loop().time()

    said, asked_at_s, ended_s = run_virtually(scenario())
    assert said == {}
    assert asked_at_s == pytest.approx(1.0)
    assert ended_s == pytest.approx(1.4 * LEARN_S)


def test_a_restart_does_not_wait_for_a_call_that_a_silent_rank_holds_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launched: list[MortalRank] = []

    def launch(group: LearnerGroup) -> list[MortalRank]:
        launched.append(MortalRank())
        return launched[-1:]

    monkeypatch.setattr(LearnerGroup, "_launch", launch)
    monkeypatch.setattr("learner.group.ray.kill", lambda rank, no_restart: rank.killed.set())

    async def start(group: LearnerGroup) -> None:
        started.append(asyncio.get_running_loop().time())

    started: list[float] = []
    monkeypatch.setattr(LearnerGroup, "_start", start)

    async def scenario() -> None:
        group = LearnerGroup(cast(LearnerSetup, None), [], learn_s=LEARN_S, push_s=1)
        held_up = asyncio.ensure_future(group.configure(SETTINGS))
        await asyncio.sleep(1.0)
        await group.restart()
        with pytest.raises(LearnerLost):
            await held_up

    run_virtually(scenario())
    assert len(launched) == 2
    assert started == [pytest.approx(1.0)]


def test_a_rank_that_dies_while_ranks_find_each_other_is_a_lost_learner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which is started again, not the end of the run."""

    class DiesAtRendezvous(FakeRank):
        def __getattr__(self, method: str) -> FakeRank:
            return FakeRank(failing(RayError("worker died")) if method == "rendezvous" else done)

    monkeypatch.setattr(LearnerGroup, "_launch", lambda group: [DiesAtRendezvous(done)])

    async def scenario() -> None:
        group = LearnerGroup(cast(LearnerSetup, SimpleNamespace(deadline_s=9)), [], learn_s=1, push_s=1)
        with pytest.raises(LearnerLost, match="learner rank 0 died"):
            await group.start()

    run_virtually(scenario())


class MortalRank(FakeRank):
    """Says nothing until it is killed."""

    def __init__(self) -> None:
        super().__init__(self._wait)
        self.killed = asyncio.Event()

    async def _wait(self) -> None:
        await self.killed.wait()
        raise RayError("worker died")
