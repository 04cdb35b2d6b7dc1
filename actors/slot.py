"""A worker's life: the states that it goes through, and the place that it and its successors have.

    launch -> STARTING --ready--> STALE --admit--> SERVING <--> SUSPECT
                 ^                  ^ |               |          | |
                 |                  +-|---------------|----------+ |
                 +------------------- DEAD <----------+------------+

The one way to SERVING is from STALE through `admit`, or back from a silence in which nothing was missed; the one
way out of DEAD is a new process. So nobody who died serves before it was admitted again: for rollout workers,
before a verified weight pull. Who is to leave is DRAINING: it finishes what it has and gets nothing new.
"""

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from core.worker_report import WorkerReport


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    STALE = "stale"
    """Up, and not admitted: a rollout worker without the present weights."""
    SERVING = "serving"
    SUSPECT = "suspect"
    """Silent: keeps what it has and gets nothing new."""
    DRAINING = "draining"
    DEAD = "dead"


UP = (WorkerState.STALE, WorkerState.SERVING, WorkerState.DRAINING)
"""Those of a worker that answers, as far as anybody knows."""
NEXT = {
    WorkerState.STARTING: (WorkerState.STALE, WorkerState.DEAD),
    WorkerState.STALE: (WorkerState.SERVING, WorkerState.DRAINING, WorkerState.DEAD),
    WorkerState.SERVING: (WorkerState.SUSPECT, WorkerState.DRAINING, WorkerState.DEAD),
    WorkerState.SUSPECT: (WorkerState.SERVING, WorkerState.STALE, WorkerState.DRAINING, WorkerState.DEAD),
    WorkerState.DRAINING: (WorkerState.DEAD,),
    WorkerState.DEAD: (WorkerState.STARTING,),
}
"""Where a worker may go from each state."""


class WorkerHandle(Protocol):
    """One worker process."""

    async def ready(self, deadline_s: float) -> None:
        """Returns once it can work."""

    async def ping(self, deadline_s: float) -> WorkerReport:
        """Returns at once if it is well. Raises `WorkerLost` if it is dead or silent."""

    async def report(self, deadline_s: float) -> WorkerReport:
        """The same, also while what it works on holds it up."""

    def kill(self) -> None:
        """End the process, whatever it does."""


H = TypeVar("H", bound=WorkerHandle)


@dataclass(slots=True)
class Slot(Generic[H]):
    """A place for one worker, under a stable name. Who dies is replaced in the same place."""

    name: str
    handle: H
    state: WorkerState = WorkerState.STARTING
    load: int = 0
    """Requests that it works on."""
    restarts: int = 0
    reason: str = ""
    """Why the last one died."""
    has_served: bool = False
    """This process, not its predecessors."""
    missed_refit: bool = False
    """It was silent while the others were given new weights."""
    is_awaited: bool = False
    """It started while others were at work already, so that it serves is news."""
    leave_by: float | None = None
    """Time, on the loop's clock, at which it is ended if it has not finished. None: it stays."""
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process is dead."""

    def enter(self, state: WorkerState) -> None:
        """Go to a state, if that may follow."""
        assert state in NEXT[self.state], f"{self.name}: from {self.state} to {state}"
        self.state = state
        self.has_served |= state is WorkerState.SERVING

    def renew(self, handle: H) -> None:
        """A new process takes the place of the dead one."""
        self.enter(WorkerState.STARTING)
        self.handle, self.load, self.lost = handle, 0, asyncio.Event()
        self.has_served = self.missed_refit = False
        self.is_awaited = True
        self.restarts += 1
