"""A run seen from outside: steered through the `control.json` in its folder while it lives, read from its folder
once it is over.

Needs little beyond the standard library, so that `leash status` answers at once.
"""

import contextlib
import http.client
import json
import os
import socket
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from core.errors import UserError, WorkerError

CONTROL_FILE = "control.json"
"""Where a live run says how to reach it; removed when the run ends, left behind when it is killed."""
_STATUS_DEADLINE_S = 15
"""A run answers between two things that it does; none of them keeps it this long."""
_ORDER_DEADLINE_S = 600
"""An order may wait for a step to end or a worker to start."""


class NotReachedError(UserError):
    """The run cannot be steered from here; `state` says why in a word or two, the message what to do."""

    def __init__(self, state: str, message: str) -> None:
        super().__init__(message)
        self.state = state


@dataclass(frozen=True, slots=True, kw_only=True)
class _Control:
    """What control.json says."""

    port: int
    token: str
    pid: int
    host: str


class LiveRun:
    """The run that works on a folder now. Each order waits until the run has carried it out, and gives the run's
    status after it.

    Raises `NotReachedError` if no run works on the folder, `UserError` for what the run refuses, `WorkerError`
    if it fails or does not answer.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._control = _read_control(folder)

    def status(self) -> dict[str, Any]:
        return self._ask("GET", "status")

    def scale(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """So many workers of each kind."""
        return self._ask("POST", "scale", sizes)

    def pause(self) -> dict[str, Any]:
        return self._ask("POST", "pause")

    def resume(self) -> dict[str, Any]:
        return self._ask("POST", "resume")

    def set(self, settings: Mapping[str, str]) -> dict[str, Any]:
        return self._ask("POST", "set", settings)

    def _ask(self, method: str, what: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        deadline_s = _STATUS_DEADLINE_S if method == "GET" else _ORDER_DEADLINE_S
        # Not urllib's: that would show the token to a proxy, or follow another program's redirect.
        connection = http.client.HTTPConnection("127.0.0.1", self._control.port, timeout=deadline_s)
        try:
            headers = {"Authorization": f"Bearer {self._control.token}"}
            content = None if body is None else json.dumps(body)
            connection.request(method, f"/{what}", content, headers)
            response = connection.getresponse()
            code, text = response.status, response.read()
        except TimeoutError:
            late = "" if method == "GET" else "; it may still do what was asked: see `leash status`"
            raise WorkerError(
                f"{self._folder}: the run (process {self._control.pid}) did not answer within "
                f"{deadline_s:g} s{late}"
            ) from None
        except (OSError, http.client.HTTPException):
            raise _not_running(self._folder) from None
        finally:
            connection.close()
        return self._judged(code, text)

    def _judged(self, code: int, text: bytes) -> dict[str, Any]:
        """The answer, or what it says is wrong."""
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if code == 401 or not isinstance(answer, dict):  # the port has gone to another program since
            raise _not_running(self._folder)
        if code == 200:
            return answer
        message = f"{self._folder}: {answer.get('error', f'answered with {code}')}"
        raise UserError(message) if code == 422 else WorkerError(message)


def last_known(folder: Path, state: str) -> dict[str, Any]:
    """What the folder of a run that cannot be asked tells: how far it came, and whether it finished. That its
    newest checkpoint is whole is not checked: that would mean to read all of it."""
    checkpoints = sorted(folder.glob("checkpoints/step-*[0-9]"), key=lambda path: (len(path.name), path.name))
    return {
        "state": state,
        "finished": (folder / "summary.json").is_file(),
        "step": _last_step(folder / "metrics.jsonl"),
        "steps": _steps_set(folder / "events.jsonl") or _num_steps(folder / "recipe.toml"),
        "checkpoint": checkpoints[-1].name if checkpoints else None,
    }


def how_to_go_on(folder: Path) -> str:
    """The command that resumes a run that has ended."""
    return f"leash train {folder / 'recipe.toml'} --run {folder} --resume"


def _read_control(folder: Path) -> _Control:
    """Where the run listens. Raises `UserError` also for a file that is not for its owner's eyes alone."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; give the folder of a run, such as runs/a")
    file = folder / CONTROL_FILE
    try:
        with file.open(encoding="utf-8") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            text = stream.read()
    except FileNotFoundError:
        if not (folder / "recipe.toml").is_file():
            raise UserError(
                f"{folder}: not the folder of a run (no recipe.toml in it); give one such as runs/a"
            ) from None
        raise _not_running(folder) from None
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}); only who started a run steers it"
        ) from None
    if mode & 0o077:
        raise UserError(
            f"{file}: open to other users (mode {mode:03o}), and who reads it may steer the run; "
            f"close it with chmod 600 {file}"
        )
    control = _parse_control(file, text)
    if control.host != socket.gethostname():
        raise NotReachedError(
            f"out of reach, on {control.host}",
            f"{folder}: its {CONTROL_FILE} was written on {control.host}: give this command there. "
            f"If that run is dead, go on with: {how_to_go_on(folder)}",
        )
    return control


def _parse_control(file: Path, text: str) -> _Control:
    try:
        content = json.loads(text)
        port = urlsplit(str(content["url"])).port
        if port is not None:
            return _Control(port=port, **{key: content[key] for key in ("token", "pid", "host")})
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{file}: not written by Leash; remove it")


def _not_running(folder: Path) -> NotReachedError:
    if (folder / "summary.json").is_file():
        text = f"not running: it has finished; `leash status {folder}` says how far it came"
    else:
        text = f"not running: it has ended or died. Go on with: {how_to_go_on(folder)}"
    return NotReachedError("not running", f"{folder}: {text}")


def _last_step(metrics: Path) -> int | None:
    """The number of the last step whose figures were written whole."""
    if not metrics.is_file():
        return None
    lines = [line for line in metrics.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
    try:
        return int(json.loads(lines[-1])["step"]) if lines else None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{metrics}: its last line is not the figures of a step; is it damaged?") from None


def _steps_set(events: Path) -> int | None:
    """What was set last in flight, if anything was."""
    lines = events.read_text(encoding="utf-8").splitlines() if events.is_file() else []
    steps = None
    for line in lines:
        if '"trainer.steps"' in line:
            with contextlib.suppress(
                ValueError, KeyError
            ):  # a line that was being written when the run was killed
                steps = int(json.loads(line)["value"])
    return steps


def _num_steps(recipe: Path) -> int | None:
    """Of the recipe as it was written into the folder."""
    try:
        steps = tomllib.loads(recipe.read_text(encoding="utf-8")).get("trainer", {}).get("steps")
    except (OSError, ValueError):
        return None
    return steps if isinstance(steps, int) else None
