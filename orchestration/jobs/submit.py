"""`leash submit`: a training run as a job of a Ray cluster, followed to its end and tried again from its last
checkpoint. `ray job submit -- leash train ...` does the same by hand.

The door to Ray's Jobs API; what happens to a job is `orchestration/jobs/job.py`.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from core.errors import UserError
from orchestration.command import AddCommand
from orchestration.jobs.job import JobClient, by_hand, run_job, submit_once
from orchestration.jobs.working_directory import RECIPE_FILE, pack
from orchestration.recipe.files import find_recipe
from orchestration.recipe.loading import load_recipe


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
    run_folder = shlex.quote(str(run))
    return f"python -m orchestration.cli train {RECIPE_FILE} --run {run_folder} --resume-or-start"


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
        job = submit_once(client, folder, command)
        print(job)
        _say(by_hand(job, args.address))
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
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--address {address}: no Ray dashboard takes jobs there: {error}; give its address, as in "
            "http://head:8265, and its token in RAY_AUTH_TOKEN_PATH"
        ) from error
    return client


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    print(f"leash: {text}", file=sys.stderr)
