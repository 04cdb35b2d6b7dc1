"""`leash submit`: a training run as a job of a Ray cluster, followed to its end and tried again from its last
checkpoint. `ray job submit -- leash train ...` does the same by hand.

The door to Ray's Jobs API.
"""

import argparse
import asyncio
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

from core.errors import UserError, WorkerError
from orchestration.recipe import load_recipe
from orchestration.recipe_files import find_recipe
from orchestration.run_commands import AddCommand
from orchestration.working_directory import RECIPE_FILE, pack

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


def add_submit_command(add_command: AddCommand) -> None:
    """To the `leash` command."""
    added = add_command("submit", _submit, "train on a Ray cluster, as a job that is tried again")
    added.add_argument("recipe", metavar="RECIPE", help="a TOML file, or a name in deploy/recipes")
    added.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="overrides a key of the recipe")
    added.add_argument(
        "--address", required=True, help="of the cluster's dashboard, such as http://head:8265"
    )
    added.add_argument(
        "--run",
        metavar="FOLDER",
        type=Path,
        required=True,
        help="folder of the run: an absolute path on storage that all nodes share, and that outlives the job",
    )
    added.add_argument(
        "--include",
        metavar="PATH",
        type=Path,
        action="append",
        default=[],
        help="a file or folder to bring along, such as a module of reward functions; may be repeated",
    )
    added.add_argument(
        "--retries",
        metavar="N",
        type=int,
        default=0,
        help="times that a failed job goes on from its checkpoint",
    )
    added.add_argument("--no-wait", action="store_true", help="print the job's id and do not follow it")


def entrypoint(run: Path) -> str:
    """What the job runs, in the packed folder. The same command starts the run and goes on with it."""
    words = [
        "python",
        "-m",
        "orchestration.cli",
        "train",
        RECIPE_FILE,
        "--run",
        str(run),
        "--resume-or-start",
    ]
    return shlex.join(words)


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
        job = _submitted(client, folder, command)
        say(f"submitted {job}; {_by_hand(job, address)}")
        try:
            info = _followed(client, job, write)
        except KeyboardInterrupt:
            say(f"{job} goes on; {_by_hand(job, address)}")
            return INTERRUPTED
        code = _exit_code(info)
        say(f"{job} {_status(info).lower()}" + (f": {info.message}" if code and info.message else ""))
        if code in (0, BAD_INPUT) or _status(info) == "STOPPED":
            return code
        if attempt < retries:
            say(f"trying again from the last checkpoint ({attempt + 1} of {retries})")
    return code


def _submit(args: argparse.Namespace) -> int:
    recipe = load_recipe(find_recipe(args.recipe), args.overrides)
    if not args.run.is_absolute():
        raise UserError(
            f"--run {args.run}: is a path on the cluster; give an absolute one, such as /runs/{args.run}"
        )
    if args.retries < 0:
        raise UserError(f"--retries {args.retries}: must be 0 or more")
    with tempfile.TemporaryDirectory(prefix="leash-job-") as folder:
        pack(recipe, args.include, Path(folder))
        client = _connect(args.address)
        return _run(client, Path(folder), args)


def _run(client: JobClient, folder: Path, args: argparse.Namespace) -> int:
    command = entrypoint(args.run)
    if args.no_wait:
        job = _submitted(client, folder, command)
        print(job)
        _say(_by_hand(job, args.address))
        return 0
    return run_job(
        client,
        folder,
        command=command,
        address=args.address,
        retries=args.retries,
        write=_write,
        say=_say,
    )


def _connect(address: str) -> JobClient:
    # These take a second to import, which nobody who mistypes a recipe should wait.
    from aiohttp import ClientError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """With the errors that `JobClient` promises."""

        async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            try:
                async for text in super().tail_job_logs(job_id):
                    yield text
            except ClientError as error:
                raise ConnectionError(str(error)) from error

    try:
        client: JobClient = Client(address)
    except (ConnectionError, RuntimeError) as error:
        raise UserError(
            f"--address {address}: no Ray dashboard takes jobs there: {error}; give its address, as in "
            "http://head:8265, and its token in RAY_AUTH_TOKEN_PATH"
        ) from error
    return client


def _submitted(client: JobClient, folder: Path, command: str) -> str:
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


def _by_hand(job: str, address: str) -> str:
    where = f"--address {shlex.quote(address)} {job}"
    return f"follow it: ray job logs --follow {where}; stop it: ray job stop {where}"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    print(f"leash: {text}", file=sys.stderr)
