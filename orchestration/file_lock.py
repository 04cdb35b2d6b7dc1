"""A lock that processes take in turn, on a file of the cache."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process holds the lock; the kernel releases it when its holder ends, however."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process to release {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
