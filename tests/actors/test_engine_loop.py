"""The engine's thread, over an engine whose steps the test hands out one by one."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import pytest

from actors.engine_loop import EngineLoop
from core.errors import WorkerError, WorkerLost
from core.messages import Completion, SampleRequest
from tests.fakes import make_completion, make_prompt

T = TypeVar("T")
PATIENCE_S = 20.0


class FakeEngine:
    """A request takes as many steps as its seed says. Each step waits for `steps` to be released."""

    def __init__(self) -> None:
        self.steps = threading.Semaphore(0)
        self.in_step = threading.Event()
        self.num_steps = 0
        self.failure: Exception | None = None
        self._left: dict[str, int] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._left)

    def submit(self, request: SampleRequest) -> None:
        if request.seed == 0:
            raise ValueError(f"{request.request_id} does not fit")
        self._left[request.request_id] = request.seed

    def abort(self, request_ids: Sequence[str]) -> None:
        for name in request_ids:
            del self._left[name]

    def step(self) -> list[Completion]:
        self.in_step.set()
        assert self.steps.acquire(timeout=PATIENCE_S)
        self.in_step.clear()
        self.num_steps += 1
        if self.failure:
            raise self.failure
        self._left = {name: left - 1 for name, left in self._left.items()}
        done = [name for name, left in self._left.items() if left == 0]
        for name in done:
            del self._left[name]
        return [make_completion(5, request_id=name) for name in done]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def loop(engine: FakeEngine) -> Iterator[EngineLoop]:
    loop = EngineLoop(engine)
    yield loop
    engine.steps.release(1000)
    loop.close()


class Threads:
    """A thread for each call, which does not keep the tests from ending if it waits forever."""

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future


@pytest.fixture
def threads() -> Threads:
    return Threads()


def requests(prefix: str, *num_steps: int) -> list[SampleRequest]:
    return [
        SampleRequest(request_id=f"{prefix}{index}", prompt=make_prompt(), seed=steps)
        for index, steps in enumerate(num_steps)
    ]


def names(completions: Iterator[Completion]) -> list[str]:
    return [completion.request_id for completion in completions]


def soon(future: Future[T]) -> T:
    """The result, or a failed test instead of an endless wait."""
    return future.result(timeout=PATIENCE_S)


def test_completions_arrive_as_they_finish(engine: FakeEngine, loop: EngineLoop, threads: Threads) -> None:
    stream = loop.sample(requests("a", 3, 1, 2))
    engine.steps.release()
    assert soon(threads.submit(next, stream)).request_id == "a1"
    assert engine.in_step.wait(PATIENCE_S)
    assert engine.num_steps == 1  # the first is here while the others are still sampled
    engine.steps.release(2)
    assert soon(threads.submit(names, stream)) == ["a2", "a0"]


def test_each_caller_gets_its_own_completions(engine: FakeEngine, loop: EngineLoop, threads: Threads) -> None:
    first = threads.submit(names, loop.sample(requests("a", 2, 1)))
    assert engine.in_step.wait(PATIENCE_S)
    second = threads.submit(names, loop.sample(requests("b", 1, 3)))
    engine.steps.release(10)
    assert soon(first) == ["a1", "a0"]
    assert soon(second) == ["b0", "b1"]


def test_calls_run_between_two_steps_of_a_busy_engine(
    engine: FakeEngine, loop: EngineLoop, threads: Threads
) -> None:
    sampling = threads.submit(names, loop.sample(requests("a", 5)))
    assert engine.in_step.wait(PATIENCE_S)

    def look() -> tuple[str, bool, int]:
        return threading.current_thread().name, engine.in_step.is_set(), engine.num_steps

    calls = [threads.submit(loop.call, look) for _ in range(2)]
    engine.steps.release()
    assert [soon(call) for call in calls] == [("engine", False, 1)] * 2
    engine.steps.release(10)
    assert soon(sampling) == ["a0"]


def test_calls_run_on_an_idle_engine(loop: EngineLoop, threads: Threads) -> None:
    assert soon(threads.submit(loop.call, lambda: 42)) == 42


def test_an_error_of_a_call_reaches_its_caller_alone(
    engine: FakeEngine, loop: EngineLoop, threads: Threads
) -> None:
    sampling = threads.submit(names, loop.sample(requests("a", 1)))
    failing: Future[int] = threads.submit(loop.call, lambda: 1 // 0)
    engine.steps.release(10)
    with pytest.raises(ZeroDivisionError):
        soon(failing)
    assert soon(sampling) == ["a0"]


def test_a_refused_request_reaches_its_caller_alone(
    engine: FakeEngine, loop: EngineLoop, threads: Threads
) -> None:
    engine.steps.release(10)
    with pytest.raises(ValueError, match="bad0 does not fit"):
        soon(threads.submit(names, loop.sample(requests("bad", 0))))
    assert soon(threads.submit(names, loop.sample(requests("a", 1)))) == ["a0"]


def break_engine(
    engine: FakeEngine, loop: EngineLoop, threads: Threads
) -> tuple[Sequence[Future[Any]], Future[Any]]:
    """Two callers who wait for completions, and one whose call came during the step that fails."""
    sampling = [threads.submit(names, loop.sample(requests("a", 9, 9)))]
    assert engine.in_step.wait(PATIENCE_S)
    engine.in_step.clear()
    sampling.append(threads.submit(names, loop.sample(requests("b", 9))))
    engine.steps.release()
    assert engine.in_step.wait(PATIENCE_S)
    engine.in_step.clear()
    # Whether the second one is in by now is chance, so one more step makes sure of it.
    engine.steps.release()
    assert engine.in_step.wait(PATIENCE_S)
    engine.failure = RuntimeError("out of memory")
    queued = threads.submit(loop.call, lambda: "too late")
    engine.steps.release()
    return sampling, queued


def test_a_broken_engine_is_heard_of_by_everybody_who_waits(
    engine: FakeEngine, loop: EngineLoop, threads: Threads
) -> None:
    sampling, queued = break_engine(engine, loop, threads)
    for future in sampling:
        with pytest.raises((RuntimeError, WorkerError), match="out of memory"):
            soon(future)
    with pytest.raises((RuntimeError, WorkerError), match="out of memory"):
        soon(queued)


@pytest.mark.parametrize(
    "use",
    [lambda loop: loop.call(lambda: 1), lambda loop: names(loop.sample(requests("late", 1)))],
    ids=["call", "sample"],
)
def test_whoever_comes_after_the_engine_broke_hears_why_at_once(
    engine: FakeEngine, loop: EngineLoop, threads: Threads, use: Callable[[EngineLoop], object]
) -> None:
    sampling, _ = break_engine(engine, loop, threads)
    assert isinstance(sampling[0].exception(timeout=PATIENCE_S), RuntimeError)
    with pytest.raises(WorkerError, match="out of memory"):
        threads.submit(use, loop).result(timeout=5)


def test_a_closed_loop_answers_too(engine: FakeEngine, loop: EngineLoop, threads: Threads) -> None:
    sampling = threads.submit(names, loop.sample(requests("a", 9)))
    assert engine.in_step.wait(PATIENCE_S)
    closing = threads.submit(loop.close)
    while loop._calls.empty():
        assert not closing.done()
    engine.steps.release()
    soon(closing)
    with pytest.raises(WorkerError, match="closed"):
        sampling.result(timeout=5)
    with pytest.raises(WorkerError, match="closed"):
        threads.submit(loop.call, lambda: 1).result(timeout=5)


def test_aborted_requests_end_and_the_others_go_on(
    engine: FakeEngine, loop: EngineLoop, threads: Threads
) -> None:
    kept = threads.submit(names, loop.sample(requests("kept", 1)))
    given_up = threads.submit(names, loop.sample(requests("given-up", 5)))
    assert engine.in_step.wait(PATIENCE_S)
    aborting = threads.submit(loop.abort, ["given-up0", "finished long ago"])
    engine.steps.release(3)
    soon(aborting)
    with pytest.raises(WorkerError, match="aborted"):
        soon(given_up)
    assert soon(kept) == ["kept0"]
    assert not engine.has_work
    assert loop.call(lambda: "alive") == "alive"


def test_a_broken_engine_is_a_lost_worker(engine: FakeEngine, threads: Threads) -> None:
    broken = threading.Event()
    loop = EngineLoop(engine, on_broken=broken.set)
    engine.failure = AssertionError("no more blocks")
    waiting = threads.submit(names, loop.sample(requests("a", 2)))
    engine.steps.release()
    with pytest.raises(WorkerLost, match="the engine broke: AssertionError: no more blocks"):
        soon(waiting)
    assert broken.wait(PATIENCE_S)
    with pytest.raises(WorkerLost, match="no longer runs"):
        loop.call(lambda: None)


def test_an_engine_that_breaks_while_it_is_driven_is_a_lost_worker_too(
    engine: FakeEngine, threads: Threads
) -> None:
    broken = threading.Event()
    loop = EngineLoop(engine, on_broken=broken.set)

    def pull_weights() -> None:
        raise RuntimeError("illegal memory access")

    with pytest.raises(WorkerLost, match="^the engine broke: RuntimeError: illegal memory access"):
        soon(threads.submit(loop.drive, pull_weights))
    assert broken.wait(PATIENCE_S)
    with pytest.raises(WorkerLost, match="no longer runs: the engine broke: RuntimeError: illegal"):
        loop.call(lambda: None)


def test_a_verdict_on_what_it_was_given_leaves_the_engine_as_it_is(
    loop: EngineLoop, threads: Threads
) -> None:
    def pull_weights() -> None:
        raise WorkerError("the probe differs by 1.3 nats")

    with pytest.raises(WorkerError, match="^the probe differs by 1.3 nats$"):
        soon(threads.submit(loop.drive, pull_weights))
    assert loop.drive(lambda: "alive") == "alive"


def queued(loop: EngineLoop, threads: Threads, function: Callable[[], T]) -> Future[T]:
    """The call of another thread, once it waits for the step in progress."""
    before, until = loop._calls.qsize(), time.monotonic() + PATIENCE_S
    future = threads.submit(function)
    while loop._calls.qsize() == before:
        assert time.monotonic() < until
        time.sleep(0.001)
    return future


def test_a_call_that_drains_runs_once_what_runs_is_finished_and_new_requests_wait(
    engine: FakeEngine, loop: EngineLoop, threads: Threads
) -> None:
    running = threads.submit(lambda: names(loop.sample(requests("old", 1, 3))))
    assert engine.in_step.wait(PATIENCE_S)
    pull = queued(loop, threads, lambda: loop.call(lambda: engine.num_steps, drain_s=1000.0))
    late = queued(loop, threads, lambda: names(loop.sample(requests("new", 1))))
    another = queued(loop, threads, lambda: loop.call(lambda: engine.num_steps, drain_s=1000.0))
    other = queued(loop, threads, lambda: loop.call(lambda: engine.num_steps))
    engine.steps.release()
    assert soon(other) == 1  # it does not wait, and the others do
    assert not pull.done()
    engine.steps.release(2)
    assert soon(running) == ["old0", "old1"]
    assert soon(pull) == soon(another) == 3
    engine.steps.release()
    assert soon(late) == ["new0"]
    assert engine.num_steps == 4


def test_a_call_that_drains_an_idle_engine_runs_at_once(loop: EngineLoop) -> None:
    assert loop.call(lambda: 5, drain_s=1000.0) == 5


def test_a_call_waits_for_what_runs_no_longer_than_it_may(
    engine: FakeEngine, loop: EngineLoop, threads: Threads
) -> None:
    running = threads.submit(lambda: names(loop.sample(requests("old", 10**6))))
    assert engine.in_step.wait(PATIENCE_S)
    pull = queued(loop, threads, lambda: loop.call(lambda: engine.has_work, drain_s=1e-9))
    engine.steps.release(2)
    assert soon(pull) is True
    assert not running.done()


def test_who_was_held_back_hears_that_the_engine_broke(
    engine: FakeEngine, loop: EngineLoop, threads: Threads
) -> None:
    threads.submit(lambda: names(loop.sample(requests("old", 5))))
    assert engine.in_step.wait(PATIENCE_S)
    pull = queued(loop, threads, lambda: loop.call(lambda: None, drain_s=1000.0))
    late = queued(loop, threads, lambda: names(loop.sample(requests("new", 1))))
    other = queued(loop, threads, lambda: loop.call(lambda: None))
    engine.steps.release()
    soon(other)  # by now they are held back
    engine.failure = RuntimeError("out of memory")
    engine.steps.release(2)
    everybody: tuple[Future[Any], ...] = (pull, late)
    for waiting in everybody:
        with pytest.raises(WorkerLost, match="out of memory"):
            soon(waiting)
