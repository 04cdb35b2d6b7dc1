"""One run as the dashboard sees it: its folder, and its status while it lives."""

import contextlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError, WorkerError
from orchestration.control.client import LiveRun, NotReachedError, last_known
from orchestration.dashboard.json_lines import JsonLines
from orchestration.dashboard.progress import progress


class RunView:
    """Reads, never writes."""

    def __init__(self, folder: Path, name: str) -> None:
        """Raises `UserError` if the folder is not a run's, or its recipe is damaged."""
        self.folder = folder
        self.name = name
        """Told apart from the other runs'."""
        self.records = JsonLines(folder / "metrics.jsonl", {"step": int})
        self.events = JsonLines(folder / "events.jsonl", {"kind": str, "text": str})
        self._last_recipe = _read_recipe(folder / "recipe.toml")

    @property
    def _recipe(self) -> dict[str, Any]:
        """As it is now: who resumes the run may bring another. One that is gone or damaged since is as it was last:
        the pages of other runs go on."""
        with contextlib.suppress(UserError):
            self._last_recipe = _read_recipe(self.folder / "recipe.toml")
        return self._last_recipe

    @property
    def model(self) -> str | None:
        """The policy's, as the recipe names it."""
        return self._text_of_model("path")

    @property
    def revision(self) -> str | None:
        """The policy's, if it is from the Hub."""
        return self._text_of_model("revision")

    def _text_of_model(self, key: str) -> str | None:
        model = self._recipe.get("model")
        text = model.get(key) if isinstance(model, dict) else None
        return text if isinstance(text, str) else None

    @property
    def steps(self) -> int | None:
        """How many the run is to have."""
        trainer = self._recipe.get("trainer")
        steps = trainer.get("steps") if isinstance(trainer, dict) else None
        return steps if isinstance(steps, int) else None

    def description(self) -> dict[str, Any]:
        """What does not change while it runs."""
        recipe = [[key, text] for key, text in _flat(self._recipe)]
        return {"name": self.name, "folder": str(self.folder), "recipe": recipe}

    def status(self) -> dict[str, Any]:
        """`is_live`, `state`, `progress`, of a live run all that `leash status` says, and a `problem`.

        Asks the run, which may take seconds.
        """
        is_live, problem = False, None
        try:
            status = LiveRun(self.folder).status()
            is_live = True
        except NotReachedError as error:
            status = {"state": error.state}
        except (UserError, WorkerError) as error:
            status, problem = {"state": "unknown"}, str(error)
        if not is_live:
            try:
                status |= last_known(self.folder, status["state"])
            except UserError as error:
                problem = str(error)
        if status.get("finished"):
            status["state"] = "finished"
        steps = status.get("steps") or self.steps
        return status | {
            "is_live": is_live,
            "problem": problem,
            "progress": progress(self.records.rows(), steps),
        }


def open_runs(folders: Sequence[Path]) -> list[RunView]:
    """A view of each, with a name that tells it apart. Raises `UserError`."""
    paths = [folder.resolve() for folder in folders]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise UserError(f"{folders[index]}: is given twice; give each run once")
    return [RunView(folder, _name(path, paths)) for folder, path in zip(folders, paths, strict=True)]


def _name(path: Path, paths: Sequence[Path]) -> str:
    """As much of the end of the path as no other has."""
    for length in range(1, len(path.parts)):
        end = path.parts[-length:]
        if sum(other.parts[-length:] == end for other in paths) == 1:
            return "/".join(end)
    return str(path)


def _read_recipe(file: Path) -> dict[str, Any]:
    if not file.parent.is_dir():
        raise UserError(f"{file.parent}: no such run folder; give the folder of a run, such as runs/a")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{file.parent}: not the folder of a run (no recipe.toml in it); give one such as runs/a"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); restore it from a copy") from None


def _flat(table: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each key of a recipe as it is overridden on a command line, such as `rewards.0.weight`, and its value."""
    if isinstance(table, list) and any(isinstance(inner, dict) for inner in table):
        table = {str(index): inner for index, inner in enumerate(table)}
    if isinstance(table, Mapping):
        for key, inner in table.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, table if isinstance(table, str) else json.dumps(table, default=str)
