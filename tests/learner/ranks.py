"""Real ranks of a learner: one process each, which write down what came out of their scenarios."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DEADLINE_S = 400


def run_ranks(
    folder: Path,
    world_size: int,
    scenarios: Sequence[str],
    *,
    module: str = "tests.learner.learner_rank",
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run scenarios of a module in one process a rank, and wait for all; none is left behind."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = [folder / f"world{world_size}-rank{rank}.log" for rank in range(world_size)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(world_size), str(port), str(folder), *scenarios],
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment or {}),
            start_new_session=True,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=DEADLINE_S) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    said = "\n".join(log.read_text(encoding="utf-8")[-3000:] for log in logs)
    assert codes == [0] * world_size, said


def facts(folder: Path, name: str, rank: int = 0) -> Any:
    return json.loads((folder / f"{name}-{rank}.json").read_text(encoding="utf-8"))
