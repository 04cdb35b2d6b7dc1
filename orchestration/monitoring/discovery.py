"""How Prometheus finds a run: a small file that is there for as long as the run serves /metrics.

The file is in the format of Prometheus' file-based service discovery, one target with the labels of the run. A
run that is killed or fails leaves its file behind: Prometheus then finds nobody there, which is an alert, until the
run is resumed or somebody removes the file. One that ends, is told to stop or was given bad input removes it.

One folder is for the runs of one machine, since /metrics is served to that machine only.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from core.errors import RewardError, UserError
from orchestration.run_folder import write_atomically


@contextlib.contextmanager
def announced(folder: Path | None, *, url: str | None, run: Path, recipe: str) -> Iterator[None]:
    """Within, Prometheus finds the run at this URL, with its folder's name as the label `run`.

    Who fails is left there, to be missed. Without a folder or a URL nothing happens. `UserError` if the folder
    cannot be written to.
    """
    if folder is None or url is None:
        yield
        return
    target = urlsplit(url).netloc
    file = discovery_file(folder, run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _forget_who_was_there_before(folder, target)
        labels = {"run": run.resolve().name, "recipe": recipe}
        write_atomically(file, json.dumps([{"targets": [target], "labels": labels}], indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"metrics.discovery_folder = {folder}: cannot be written to ({error.strerror}); "
            'choose a folder of your own, or "none"'
        ) from error
    is_failed = False
    try:
        yield
    except Exception as error:  # to be told to stop is no `Exception`, but a `BaseException`
        is_failed = not isinstance(error, UserError) or isinstance(error, RewardError)
        raise
    finally:
        if not is_failed:
            file.unlink(missing_ok=True)


def discovery_file(folder: Path, run: Path) -> Path:
    """The file of a run: the same when it is resumed, another one for a folder of the same name elsewhere."""
    run = run.resolve()
    return folder / f"{run.name}-{hashlib.sha256(bytes(run)).hexdigest()[:8]}.json"


def _forget_who_was_there_before(folder: Path, target: str) -> None:
    """Remove the files of runs that were killed and whose address is now another's, which would count as theirs."""
    for file in folder.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # its run has just ended
            if target in _targets(file):
                file.unlink()


def _targets(file: Path) -> list[Any]:
    """The addresses in a file; none in one that is not of this format, which is not ours to judge."""
    try:
        groups = json.loads(file.read_bytes())
        return [target for group in groups for target in group["targets"]]
    except (ValueError, TypeError, KeyError):
        return []
