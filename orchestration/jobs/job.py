"""A job of a Ray cluster, from its submission to its exit code: followed, and tried again while it fails.

Knows no Ray: it is given a client, which is Ray's in production and a plain object in tests.
"""

import asyncio
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

from core.errors import WorkerError

BAD_INPUT = 2
"""Exit code of `leash train` for what no retry mends."""
INTERRUPTED = 130
_POLL_S = 1.0
_LOST_AFTER_S = 300.0
"""A cluster that has not answered for so long is taken for gone."""
_TAKES_JOBS_S = 60.0
"""After which a cluster that takes no job is given up."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class JobInfo(Protocol):
    """What is read of Ray's `JobDetails`."""

    status: Any
    """One of PENDING, RUNNING and `ENDED`."""
    message: str | None
    driver_exit_code: int | None


class JobClient(Protocol):
    """What is used of Ray's `JobSubmissionClient`. Each method raises `RuntimeError` or `OSError` if the cluster
    does not answer, or refuses."""

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any]) -> str:
        """The job's id, which is `submission_id`."""

    def get_job_info(self, job_id: str) -> JobInfo: ...

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """The log from its start, in pieces, until the job ends or the connection breaks."""


def run_job(
    client: JobClient,
    folder: Path,
    *,
    command: str,
    address: str,
    retries: int,
    write: Callable[[str], object],
    say: Callable[[str], object],
) -> int:
    """Submit, follow the log, and try again while it fails; the last job's exit code.

    `write` gets the job's log, `say` what this process has to say. Raises `WorkerError` if the cluster is gone.
    """
    for attempt in range(retries + 1):
        job = submit_once(client, folder, command)
        say(f"submitted {job}; {by_hand(job, address)}")
        try:
            info = _followed(client, job, write)
        except KeyboardInterrupt:
            say(f"{job} goes on; {by_hand(job, address)}")
            return INTERRUPTED
        code = _exit_code(info)
        say(f"{job} {_status(info).lower()}" + (f": {info.message}" if code and info.message else ""))
        if code in (0, BAD_INPUT) or _status(info) == "STOPPED":
            return code
        if attempt < retries:
            say(f"trying again from the last checkpoint ({attempt + 1} of {retries})")
    return code


def submit_once(client: JobClient, folder: Path, command: str) -> str:
    """The id of a new job. A cluster that has just started takes none for some seconds; tried again under the same
    id, a job whose answer was lost on the way is not started twice."""
    job = f"leash-{secrets.token_hex(6)}"
    give_up = time.monotonic() + _TAKES_JOBS_S
    while True:
        try:
            return client.submit_job(
                entrypoint=command, submission_id=job, runtime_env={"working_dir": str(folder)}
            )
        except (RuntimeError, OSError) as error:
            if _is_known(client, job):
                return job
            if time.monotonic() > give_up:
                raise WorkerError(f"the cluster takes no job: {error}") from error
        time.sleep(_POLL_S)


def _is_known(client: JobClient, job: str) -> bool:
    try:
        client.get_job_info(job)
    except (RuntimeError, OSError):
        return False
    return True


def _followed(client: JobClient, job: str, write: Callable[[str], object]) -> JobInfo:
    """The job when it has ended. Its log is written once, even if the connection breaks on the way."""
    num_written = 0
    answered = time.monotonic()

    async def follow() -> None:
        nonlocal num_written
        num_read = 0
        async for text in client.tail_job_logs(job):
            new = text[max(0, num_written - num_read) :]
            num_read += len(text)
            num_written = max(num_written, num_read)
            write(new)

    while True:
        try:
            asyncio.run(follow())
            info = client.get_job_info(job)
            answered = time.monotonic()
            if _status(info) in ENDED:
                return info
        except (RuntimeError, OSError) as error:
            silent_s = time.monotonic() - answered
            if silent_s > _LOST_AFTER_S:
                raise WorkerError(
                    f"the cluster of {job} has not answered for {silent_s:.0f} s: {error}"
                ) from error
        time.sleep(_POLL_S)


def _status(info: JobInfo) -> str:
    return str(getattr(info.status, "value", info.status))


def _exit_code(info: JobInfo) -> int:
    match _status(info):
        case "SUCCEEDED":
            return 0
        case "STOPPED":
            return INTERRUPTED
        case _:  # killed by a signal, or never started: there is no code that a shell could return
            return code if (code := info.driver_exit_code) is not None and 0 < code < 256 else 1


def by_hand(job: str, address: str) -> str:
    where = f"--address {shlex.quote(address)} {job}"
    return f"follow it: ray job logs --follow {where}; stop it: ray job stop {where}"
