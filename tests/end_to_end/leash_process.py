"""The `leash` command as its users meet it: a process with an exit code, output, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
MARK = "LEASH_TEST_PROCESS"
"""An environment variable that every process started by a `leash` inherits, Ray's and its workers' too."""
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Ended:
    """What a finished process leaves."""

    code: int
    output: str
    """Standard output and error together."""

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error: ")]


class LeashProcess:
    """A command in a session of its own, its output in a file.

    process = LeashProcess(["leash", "train", recipe], log)
    ended = process.wait(deadline_s=200)      # or process.terminate() first
    """

    def __init__(
        self, command: list[str], log: Path, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self.mark = uuid.uuid4().hex
        self._log = log
        self._shared_before = shared_memory_files()
        variables = {
            name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "VLLM_"))
        }
        variables |= {
            MARK: self.mark,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            **(environment or {}),
        }
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=variables,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def terminate(self) -> None:
        """SIGTERM, as a scheduler sends it: to this process alone."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, deadline_s: float) -> Ended:
        """The end of it. Past the deadline everything that it started is killed, and the test fails."""
        try:
            code = self._process.wait(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end within {deadline_s} s:\n{self.output[-4000:]}") from None
        return Ended(code, self.output)

    def wait_until(self, condition: Callable[[], bool], deadline_s: float) -> None:
        """Until something holds, while the process runs."""
        stop = time.monotonic() + deadline_s
        while not condition():
            if not self.running or time.monotonic() > stop:
                code = self._process.poll()
                self.kill()
                raise AssertionError(f"not within {deadline_s} s (exit code {code}):\n{self.output[-4000:]}")
            time.sleep(0.1)

    def left_behind(self, patience_s: float = 10.0) -> list[str]:
        """Processes and shared memory that outlive it. Ray's own helpers may take a few seconds to notice."""
        stop = time.monotonic() + patience_s
        while (left := self.descendants()) and time.monotonic() < stop:
            time.sleep(0.2)
        files = shared_memory_files() - self._shared_before
        return [" ".join(process.cmdline())[:200] for process in left if process.is_running()] + sorted(files)

    def kill(self) -> None:
        """End everything that it started, and wait until it is gone: the dying write files, too."""
        for process in [psutil.Process(self._process.pid)] if self.running else []:
            process.kill()
        ended = self.descendants()
        for process in ended:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait(timeout=10)
        psutil.wait_procs(ended, timeout=10)

    def descendants(self) -> list[psutil.Process]:
        """Living processes that carry its mark, whoever is their parent by now."""
        return [process for process in psutil.process_iter() if self._is_marked(process)]

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            living = process.status() != psutil.STATUS_ZOMBIE
            return living and process.environ().get(MARK) == self.mark
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False


def leash(
    *arguments: str | Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
    enter: Sequence[str] = (),
) -> LeashProcess:
    """`enter`: of the host that it runs on, if that is not this machine (`hosts.py`)."""
    return LeashProcess([*enter, str(BIN / "leash"), *map(str, arguments)], log, environment=environment)


def shared_memory_files() -> set[str]:
    """Leash's own; Ray's are in a folder that its session ends with."""
    return {path.name for path in SHARED_MEMORY.glob("leash*")}


def records(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl so far."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]
