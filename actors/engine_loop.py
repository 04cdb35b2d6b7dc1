"""The one thread that touches an engine. Other threads hand it requests and wait for what comes out."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from core.messages import Completion, SampleRequest

T = TypeVar("T")


class Engine(Protocol):
    """What the loop drives: `Sampler`, or a stand-in with the same contract."""

    @property
    def has_work(self) -> bool: ...

    def submit(self, request: SampleRequest) -> None: ...

    def step(self) -> list[Completion]: ...


class EngineLoop:
    """Steps an engine while it has work, and runs calls on it between two steps.

    loop = EngineLoop(sampler)
    for completion in loop.sample(requests): ...      # in any thread, as they finish
    loop.call(lambda: sampler.pull_weights(manifest)) # in any thread, between two steps
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._streams: dict[str, queue.SimpleQueue[Completion | BaseException]] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Completion]:
        """Completions in the order in which they finish. Raises what the engine raised."""
        stream: queue.SimpleQueue[Completion | BaseException] = queue.SimpleQueue()
        self.call(lambda: self._submit(requests, stream))
        for _ in requests:
            item = stream.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the engine's thread, between two steps, and wait for its result."""
        future: Future[T] = Future()
        self._calls.put((function, future))
        return future.result()

    def close(self) -> None:
        """Stop after the step in progress."""
        self._calls.put(None)
        self._thread.join()

    def _submit(self, requests: Sequence[SampleRequest], stream: "queue.SimpleQueue[Any]") -> None:
        for request in requests:
            self._engine.submit(request)
            self._streams[request.request_id] = stream

    def _run(self) -> None:
        while True:
            while not (self._calls.empty() and self._engine.has_work):
                item = self._calls.get()  # blocks while there is nothing to step
                if item is None:
                    return
                self._answer(*item)
            self._step()

    def _answer(self, function: Callable[[], Any], future: Future[Any]) -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # handed to the thread that asked
            future.set_exception(error)

    def _step(self) -> None:
        try:
            for completion in self._engine.step():
                self._streams.pop(completion.request_id).put(completion)
        except BaseException as error:  # the engine is broken: everybody who waits must hear of it
            for stream in set(self._streams.values()):
                stream.put(error)
            raise
