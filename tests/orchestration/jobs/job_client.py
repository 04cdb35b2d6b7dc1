"""A cluster's Jobs API in memory, and the contract that it shares with Ray's."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestration.jobs.job import ENDED, JobClient


@dataclass
class FakeInfo:
    status: str
    message: str | None = None
    driver_exit_code: int | None = None


@dataclass
class FakeJobs:
    """Runs each job at once; `outcomes` says how one after the other ends, the last one for all others."""

    outcomes: list[FakeInfo]
    logs: list[str] = field(default_factory=lambda: ["hello\n"])
    on_tail: list[Callable[[], None]] = field(default_factory=list)
    """What happens in the middle of the log, one entry each time that somebody follows it."""
    entrypoints: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    packed: list[set[str]] = field(default_factory=list)
    """Names in the working directory of each job."""

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any]) -> str:
        self.jobs.append(submission_id)
        self.entrypoints.append(entrypoint)
        self.packed.append({path.name for path in Path(runtime_env["working_dir"]).iterdir()})
        return submission_id

    def get_job_info(self, job_id: str) -> FakeInfo:
        self._require(job_id)
        return self.outcomes[min(self.jobs.index(job_id), len(self.outcomes) - 1)]

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self._require(job_id)
        for text in self.logs:
            yield text
            if self.on_tail:
                self.on_tail.pop(0)()

    def _require(self, job_id: str) -> None:
        if job_id not in self.jobs:
            raise RuntimeError(f"Job {job_id} does not exist")


def check_contract(client: JobClient, folder: Path) -> None:
    """Of a client whose jobs all write two lines and end with exit code 3."""
    command = 'python -c \'print("one"); print("two"); raise SystemExit(3)\''
    job = client.submit_job(
        entrypoint=command, submission_id="leash-contract", runtime_env={"working_dir": str(folder)}
    )
    assert job == "leash-contract"

    async def log() -> str:
        return "".join([text async for text in client.tail_job_logs(job)])

    assert asyncio.run(log()).endswith("one\ntwo\n")
    assert asyncio.run(log()).endswith("one\ntwo\n"), "followed again, a log starts from its beginning"
    info = client.get_job_info(job)
    status = getattr(info.status, "value", info.status)
    assert (status in ENDED, status, info.driver_exit_code) == (True, "FAILED", 3)
    with pytest.raises(RuntimeError):
        client.get_job_info("leash-unknown")
