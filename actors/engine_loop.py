"""The one thread that touches an engine. Other threads hand it requests and wait for what comes out."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from core.errors import UserError, WorkerError, WorkerLost
from core.messages import Completion, SampleRequest

T = TypeVar("T")


class Engine(Protocol):
    """What the loop drives: `Sampler`, or a stand-in with the same contract."""

    @property
    def has_work(self) -> bool: ...

    def submit(self, request: SampleRequest) -> None: ...

    def step(self) -> list[Completion]: ...

    def abort(self, request_ids: Sequence[str]) -> None: ...


@dataclass(slots=True)
class _Call:
    """A function for the engine's thread."""

    function: Callable[[], Any]
    submits: bool = False
    """It brings requests, so it waits while the running ones are finished."""
    drain_s: float = 0.0
    """Longest wait for the running requests to finish before it."""
    future: Future[Any] = field(default_factory=Future)

    def answer(self) -> None:
        try:
            self.future.set_result(self.function())
        except _EngineBrokeError as broke:
            self.future.set_exception(_as_lost(broke.error))
            raise broke.error from None
        except BaseException as error:  # handed to the thread that asked
            self.future.set_exception(error)


class EngineLoop:
    """Steps an engine while it has work, and runs calls on it between two steps.

    loop = EngineLoop(sampler)
    for completion in loop.sample(requests): ...      # in any thread, as they finish
    loop.call(lambda: sampler.pull_weights(manifest)) # in any thread, between two steps

    Once the engine broke, everybody who waits hears why, in a `WorkerLost`, and so does everybody who comes later.
    """

    def __init__(self, engine: Engine, *, on_broken: Callable[[], None] = lambda: None) -> None:
        self._engine = engine
        self._on_broken = on_broken
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._held: list[_Call] = []
        """Behind a call that waits for the running requests, which is the first of them."""
        self._drain_until = 0.0
        self._streams: dict[str, queue.SimpleQueue[Completion | BaseException]] = {}
        self._ended: WorkerError | None = None
        """Why nothing runs any more."""
        self._lock = threading.Lock()
        """Held to queue a call or to end, so that no call is queued after the end."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Completion]:
        """Completions in the order in which they finish. Raises what the engine raised."""
        stream: queue.SimpleQueue[Completion | BaseException] = queue.SimpleQueue()
        self._enqueue(_Call(lambda: self._submit(requests, stream), submits=True)).result()
        for _ in requests:
            item = stream.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    def call(self, function: Callable[[], T], *, drain_s: float = 0.0) -> T:
        """Run a function in the engine's thread, between two steps, and wait for its result. With `drain_s` the
        running requests are finished before it, for so long at most, and new ones wait until it has run.

        Raises what the function raised, or `WorkerError` if the engine broke before.
        """
        result: T = self._enqueue(_Call(function, drain_s=drain_s)).result()
        return result

    def drive(self, function: Callable[[], T], *, drain_s: float = 0.0) -> T:
        """`call`, of a function that steps the engine or changes its weights: if it raises anything but a verdict
        of ours, the engine is broken, as by a step that raises."""
        return self.call(lambda: _driven(function), drain_s=drain_s)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Give up requests, of which some may have finished. Who still reads their stream meets a `WorkerError`."""
        self.call(lambda: self._abort(request_ids))

    def close(self) -> None:
        """Stop after the step in progress."""
        self._calls.put(None)
        self._thread.join()

    def _enqueue(self, call: _Call) -> Future[Any]:
        with self._lock:
            if self._ended is not None:
                raise type(self._ended)(f"the engine no longer runs: {self._ended}") from self._ended
            self._calls.put(call)
        return call.future

    def _submit(self, requests: Sequence[SampleRequest], stream: "queue.SimpleQueue[Any]") -> None:
        for request in requests:
            self._engine.submit(request)
            self._streams[request.request_id] = stream

    def _abort(self, request_ids: Sequence[str]) -> None:
        running = [name for name in request_ids if name in self._streams]
        self._engine.abort(running)
        for stream in {self._streams.pop(name) for name in running}:
            stream.put(WorkerError("the requests were aborted"))

    def _run(self) -> None:
        ended: WorkerError
        try:
            self._serve()
            ended = WorkerError("it was closed")
        except BaseException as error:  # handed to everybody who waits or comes later
            ended = _as_lost(error)
            self._on_broken()
        with self._lock:
            self._ended = ended
        for stream in set(self._streams.values()):
            stream.put(ended)
        for call in self._held:
            call.future.set_exception(ended)
        while not self._calls.empty():
            if (call_left := self._calls.get()) is not None:
                call_left.future.set_exception(ended)

    def _serve(self) -> None:
        """Until closed. Raises what the engine raised."""
        while True:
            while not (self._calls.empty() and (self._engine.has_work or self._held)):
                call = self._calls.get()  # blocks while there is nothing to step
                if call is None:
                    return
                self._take(call)
            if self._held and (not self._engine.has_work or time.monotonic() >= self._drain_until):
                self._let_go()
            else:
                for completion in self._engine.step():
                    self._streams.pop(completion.request_id).put(completion)

    def _take(self, call: _Call) -> None:
        """Run it now, or hold it back until the running requests are finished."""
        if call.drain_s and not self._held:
            self._drain_until = time.monotonic() + call.drain_s
            self._held.append(call)
        elif self._held and (call.submits or call.drain_s):
            self._held.append(call)
        else:
            call.answer()

    def _let_go(self) -> None:
        """Run what was held back: nothing runs any more, or the time is up."""
        while self._held:
            self._held.pop(0).answer()


class _EngineBrokeError(Exception):
    """What was called has broken the engine."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _driven(function: Callable[[], T]) -> T:
    try:
        return function()
    except (WorkerError, UserError):
        raise
    except Exception as error:
        raise _EngineBrokeError(error) from error


def _as_lost(error: BaseException) -> WorkerLost:
    lost = WorkerLost(f"the engine broke: {type(error).__name__}: {error}")
    lost.__cause__ = error
    return lost
