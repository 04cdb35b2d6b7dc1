"""A ceiling on the memory of a user's function, in whichever process it runs."""

import math
import os
import resource
from pathlib import Path
from types import TracebackType


class MemoryLimit:
    """Inside `with limit:` allocations beyond the limit fail, in Python as a `MemoryError` where they are made.

    RLIMIT_DATA counts private writable memory. RLIMIT_AS would count what torch and Ray's object store map and
    never touch; watching the resident memory would see it too late and could only kill the process, which names
    no culprit. It is lifted outside, so that whoever reports the failure has memory to do so.
    """

    def __init__(self, gib: float | None) -> None:
        """`gib`: beyond what this process has now. None: no limit."""
        self.gib = gib
        self._soft = math.inf if gib is None else _data_bytes() + int(gib * 2**30)

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_DATA)
        soft, hard = (math.inf if limit == resource.RLIM_INFINITY else limit for limit in self._before)
        wanted = min(soft, hard, self._soft)
        if math.isfinite(wanted):
            resource.setrlimit(resource.RLIMIT_DATA, (int(wanted), self._before[1]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, self._before)


def is_out_of_memory(error: Exception) -> bool:
    """torch and the system calls have no `MemoryError`; their errors quote the system's words."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error)


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    return pages * os.sysconf("SC_PAGE_SIZE")
