"""Hands a run's figures to its trackers, off the training path: a slow or failing one costs figures, never time.

Each tracker has a thread and a bounded queue of its own, so that none of them waits for another either.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestration.trackers.tracker import Tracker, figures_of, table_of

QUEUE_SIZE = 1000
"""Calls that wait for a tracker: hundreds of steps, a few megabytes with their samples."""
CLOSE_S = 30.0
"""For all trackers together to write out what waits, at the end of a run."""
OPEN_S = 30.0
"""After which a tracker that has not opened is named: libraries ask a server that is not there for minutes."""

Call = Callable[[Tracker], None]


class TrackerSink:
    """The trackers of one run. Every method but `close` returns at once.

    sink = TrackerSink({"tensorboard": open_it}, note=view.note, samples_per_step=8)
    sink.step(record, rows)     # after every step
    sink.close(summary)         # waits for the trackers, but not for ever
    """

    def __init__(
        self,
        openers: Mapping[str, Callable[[], Tracker]],
        *,
        note: Callable[[str], None],
        samples_per_step: int,
        queue_size: int = QUEUE_SIZE,
        open_s: float = OPEN_S,
    ) -> None:
        """`openers`: called in the tracker's thread, since some ask a server. `note`: called from other threads."""
        self._feeds = [_Feed(name, opener, note, queue_size, open_s) for name, opener in openers.items()]
        self._note = note
        self._samples_per_step = samples_per_step
        self._step = 0
        self._is_closed = False

    @property
    def lost(self) -> dict[str, int]:
        """Of each tracker: how many calls it has not taken, or failed in."""
        return {feed.name: feed.lost for feed in self._feeds}

    def resume(self, step: int) -> None:
        """Go on after this step, be it an earlier one."""
        self._step = step

    def step(self, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """A step's record, and all its rollouts as rows."""
        if not self._feeds:
            return
        step = self._step = record["step"]
        figures = figures_of(record)
        self._put(lambda tracker: tracker.step(step, figures))
        if self._samples_per_step and rows:
            table = table_of(rows, self._samples_per_step)
            self._put(lambda tracker: tracker.samples(step, table))

    def event(self, kind: str, text: str) -> None:
        """Something happened after the last step."""
        step = self._step
        self._put(lambda tracker: tracker.event(step, kind, text))

    def close(self, summary: Mapping[str, Any] | None, *, deadline_s: float = CLOSE_S) -> None:
        """Wait until every tracker has all that it can take, or the deadline is over. May be called again."""
        if self._is_closed:
            return
        self._is_closed = True
        until = time.monotonic() + deadline_s
        for feed in self._feeds:
            feed.end(lambda tracker: tracker.close(summary))
        for feed in self._feeds:
            if not feed.wait(until):
                how = "finished" if feed.is_open else "opened"
                self._note(f"{feed.name}: had not {how} {deadline_s:g} s after the run; the rest is lost")
            elif feed.lost:
                self._note(f"{feed.name}: {feed.lost} entries are missing in it; metrics.jsonl has them all")

    def _put(self, call: Call) -> None:
        for feed in self._feeds:
            feed.put(call)


class _Feed:
    """One tracker's queue and thread. A daemon: a tracker that hangs must not keep the process."""

    def __init__(
        self,
        name: str,
        opener: Callable[[], Tracker],
        note: Callable[[str], None],
        size: int,
        open_s: float,
    ) -> None:
        self.name = name
        self._opener = opener
        self._note = note
        self._size = size
        self._queue: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._left_out = 0  # counted by the run's thread
        self._failed = 0  # counted by the tracker's
        self.is_open = False
        self._patience = threading.Timer(open_s, self._say_it_is_not_open, (open_s,))
        self._patience.daemon = True
        self._patience.start()
        self._thread = threading.Thread(target=self._run, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        return self._left_out + self._failed

    def put(self, call: Call) -> None:
        """For the tracker, as soon as it gets to it; left out if too much waits already."""
        if self._queue.qsize() < self._size:
            self._queue.put(call)
            return
        self._left_out += 1
        if self._left_out == 1:
            self._note(
                f"{self.name}: too slow, {self._size} entries wait already; the next ones are left out"
            )

    def end(self, last: Call) -> None:
        """After what waits, this call, and no more."""
        self._patience.cancel()  # who waits for the end says more
        self._queue.put(last)
        self._queue.put(None)

    def wait(self, until: float) -> bool:
        """Whether the tracker was done by then."""
        self._thread.join(max(0.0, until - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        tracker: Tracker | None = None
        try:
            tracker = self._opener()
            self.is_open = True
        except Exception as error:  # a library's, a server's, the network's: no reason to end a run
            self._note(f"{self.name}: not opened, so it gets nothing ({type(error).__name__}: {error})")
        finally:
            self._patience.cancel()
        while (call := self._queue.get()) is not None:
            if tracker is None:
                self._failed += 1
                continue
            try:
                call(tracker)
            except Exception as error:  # as above
                self._failed += 1
                if self._failed == 1:
                    self._note(f"{self.name}: failed ({type(error).__name__}: {error}); the run goes on")

    def _say_it_is_not_open(self, seconds: float) -> None:
        self._note(f"{self.name}: not open after {seconds:g} s; is its server there? What it is to get waits")
