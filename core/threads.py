"""What the threads of this process are doing, in one line: for the error that names who did not answer."""

import sys
import threading
import traceback
from pathlib import Path

NUM_FRAMES = 3
"""Of each thread, the innermost: enough to tell a lock from a matrix product and who asked for it."""


def busy_threads() -> str:
    """Every thread but the one that asks, with its innermost calls, the last first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    return "; ".join(
        f"{names.get(ident, 'unnamed')}: {_calls(traceback.extract_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != own
    )


def _calls(stack: traceback.StackSummary) -> str:
    return " < ".join(
        f"{frame.name} ({Path(frame.filename).name}:{frame.lineno})"
        for frame in reversed(stack[-NUM_FRAMES:])
    )
