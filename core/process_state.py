"""What another process of this node is doing, found out from outside: it may be stopped, or hold Python's lock.

descriptor = answer_with_stacks()          # in the process that may fall silent one day
process_state(pid, descriptor)             # in any other process of the same user on its node
"""

import faulthandler
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

NUM_FRAMES = 6
"""Of the main thread, the innermost: a wait for other ranks is four calls below who asked for it."""
ANSWER_S = 2.0
"""For a process to write its stacks, which it does between two instructions of whatever it executes."""
KERNEL_STATES = {
    "T": "is stopped, as by SIGSTOP",
    "t": "is held by a debugger",
    "D": "waits in the kernel for a disk or a network file system",
    "Z": "is dead",
}
"""States of a process in which it can answer nothing, by their letter in /proc."""

_FRAME = re.compile(r'File "(.*)", line (\d+) in (.*)')


@dataclass(frozen=True, slots=True)
class ProcessState:
    """Where a process is."""

    said: str
    """What it does: that it is stopped, or the innermost calls of its main thread."""
    in_collective: bool
    """Whether it waits for other processes of its group."""


def answer_with_stacks() -> int:
    """Let this process write where its threads are whenever it gets SIGUSR1, even if it never runs another line
    of Python; the descriptor that it writes to, in memory."""
    descriptor = os.memfd_create("leash-stacks")
    faulthandler.register(signal.SIGUSR1, file=descriptor, all_threads=True)
    return descriptor


def process_state(pid: int, descriptor: int) -> ProcessState:
    """What a process of this node that called `answer_with_stacks` is doing now."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        if letter in KERNEL_STATES:
            return ProcessState(f"process {pid} {KERNEL_STATES[letter]}", in_collective=False)
        frames = _main_thread(_written(pid, Path(f"/proc/{pid}/fd/{descriptor}")))
    except OSError as error:
        return ProcessState(f"process {pid} cannot be looked at: {error.strerror}", in_collective=False)
    if not frames:
        return ProcessState(f"process {pid} does not say where its threads are", in_collective=False)
    calls = " < ".join(f"{name} ({Path(file).name}:{line})" for file, line, name in frames[:NUM_FRAMES])
    in_collective = any("torch/distributed/" in file for file, _, _ in frames)
    return ProcessState(f"at {calls}", in_collective)


def _written(pid: int, file: Path) -> str:
    """What the process writes when it is asked; nothing if it does not."""
    before = file.stat().st_size
    size = before
    os.kill(pid, signal.SIGUSR1)
    stop = time.monotonic() + ANSWER_S
    while time.monotonic() < stop:
        time.sleep(0.1)
        earlier, size = size, file.stat().st_size
        if size == earlier > before:
            break
    with file.open("rb") as stacks:
        stacks.seek(before)
        return stacks.read().decode(errors="replace")


def _main_thread(stacks: str) -> list[tuple[str, str, str]]:
    """(file, line, function) of the calls of the thread that was started first, which comes last; the innermost
    call first."""
    return _FRAME.findall(stacks.split("most recent call first")[-1])
