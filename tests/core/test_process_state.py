"""What is seen of another process that no longer answers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from core.process_state import ProcessState, process_state

PROGRAM = """
import ctypes, sys, threading, time
from core.process_state import answer_with_stacks

libc = ctypes.PyDLL(None)

def work():
    print(answer_with_stacks(), flush=True)
    {work}

threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
work()
"""
HOLD_THE_LOCK = "while True: libc.sleep(60)"
"""Calls into C that keep Python's lock: no other thread runs. A signal ends one."""


@contextmanager
def working(work: str) -> Iterator[tuple[int, int]]:
    """A process at its work, and the descriptor that it answers with."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(work=work)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


def state_at(call: str, pid: int, descriptor: int) -> ProcessState:
    """Once the process has come to a call; what it was doing last if it never does."""
    stop = time.monotonic() + 10
    while not (state := process_state(pid, descriptor)).said.startswith(call) and time.monotonic() < stop:
        pass
    return state


@pytest.mark.parametrize("work", ["time.sleep(60)", HOLD_THE_LOCK])
def test_the_calls_of_the_main_thread_are_told_as_often_as_one_asks(work: str) -> None:
    with working(work) as (pid, descriptor):
        for _ in range(2):
            state = state_at("at work (<string>:9)", pid, descriptor)
            assert state.said == "at work (<string>:9) < <module> (<string>:12)"
            assert not state.in_collective


def test_a_wait_for_other_processes_of_a_group_is_told_apart() -> None:
    call = 'exec(compile("time.sleep(60)", "/site-packages/torch/distributed/distributed_c10d.py", "exec"))'
    with working(call) as (pid, descriptor):
        state = state_at("at <module> (distributed_c10d.py:1) < work (<string>:9)", pid, descriptor)
    assert state.in_collective


def test_a_stopped_process_is_said_to_be_stopped_and_goes_on_unharmed() -> None:
    with working("time.sleep(60)") as (pid, descriptor):
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        assert process_state(pid, descriptor).said == f"process {pid} is stopped, as by SIGSTOP"
        os.kill(pid, signal.SIGCONT)
        assert process_state(pid, descriptor).said.startswith("at work")


def test_a_process_that_is_gone_is_no_error() -> None:
    with working("pass") as (pid, descriptor):
        pass
    assert (
        process_state(pid, descriptor).said == f"process {pid} cannot be looked at: No such file or directory"
    )
