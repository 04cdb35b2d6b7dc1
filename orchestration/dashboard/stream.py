"""What a page is told while it is open: server-sent events, one stream a page.

    runs      those that are served, first of all: a page that was open before may know others
    charts    which charts there are, whenever a run has a new figure
    records   step records of a run as they are appended; all of them at first, or if the file was written anew
    events    of a run, likewise
    status    of a run, every few seconds
    problem   a file that cannot be read, once

Files are looked at once a second. A client that lost its connection gets everything again.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.errors import UserError
from orchestration.dashboard.charts import charts_of
from orchestration.dashboard.json_lines import Cursor, JsonLines
from orchestration.dashboard.run_view import RunView
from orchestration.run_folder import jsonable

POLL_S = 1.0
STATUS_EVERY_S = 3.0
_MAX_ROWS = 500
"""A message: a page shows the first while it waits for the rest."""
_STILL_HERE = ": \n\n"
"""A comment, so that neither side takes a quiet stream for a dead one."""


@dataclass(slots=True)
class _Followed:
    """One run, and what the page knows of it."""

    index: int
    view: RunView
    cursors: dict[str, Cursor] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    status: dict[str, Any] | None = None
    asking: "asyncio.Task[dict[str, Any]] | None" = None
    asked_s: float = float("-inf")


async def stream(runs: Sequence[RunView], is_closing: Callable[[], bool]) -> AsyncIterator[str]:
    """Messages in the form of text/event-stream, until the server closes."""
    followed = [_Followed(index, view) for index, view in enumerate(runs)]
    keys: dict[str, None] = {}
    descriptions = await asyncio.to_thread(lambda: [view.description() for view in runs])
    yield _message("runs", {"runs": descriptions})
    try:
        while not is_closing():
            messages: list[str] = []
            for run in followed:
                for kind, file in (("records", run.view.records), ("events", run.view.events)):
                    for content in await asyncio.to_thread(_news, run, kind, file):
                        if kind == "records" and not _knows(keys, content):
                            messages.append(_message("charts", {"charts": charts_of(keys)}))
                        messages.append(_message(content.pop("type"), content))
                status = _new_status(run)
                if status is not None:
                    messages.append(_message("status", {"run": run.index, "status": status}))
            for message in messages or [_STILL_HERE]:
                yield message
            await asyncio.sleep(POLL_S)
    finally:
        for run in followed:
            if run.asking is not None:
                run.asking.cancel()


def _news(run: _Followed, kind: str, file: JsonLines) -> list[dict[str, Any]]:
    """What has been appended to the file, in parts, and the problem that it has, if it is a new one."""
    messages: list[dict[str, Any]] = []
    problem = ""
    try:
        file.refresh()
    except UserError as error:
        problem = str(error)
    run.cursors[kind], is_anew, rows = file.since(run.cursors.get(kind))
    for start in range(0, max(len(rows), is_anew), _MAX_ROWS):
        part = {"is_anew": is_anew and start == 0, "rows": rows[start : start + _MAX_ROWS]}
        messages.append({"type": kind, "run": run.index} | part)
    if problem != run.problems.get(kind, ""):
        run.problems[kind] = problem
        messages.append({"type": "problem", "run": run.index, "file": kind, "text": problem})
    return messages


def _knows(keys: dict[str, None], content: dict[str, Any]) -> bool:
    """Whether the rows have only keys that there were before; those that are new are added."""
    number = len(keys)
    for row in content.get("rows", ()):
        keys.update(dict.fromkeys(row))
    return len(keys) == number


def _new_status(run: _Followed) -> dict[str, Any] | None:
    """The run's status if it has answered with another one; asks it again in the background when it is time to."""
    now_s = asyncio.get_running_loop().time()
    if run.asking is None and now_s - run.asked_s >= STATUS_EVERY_S:
        run.asking = asyncio.create_task(asyncio.to_thread(run.view.status))
        run.asked_s = now_s
    if run.asking is None or not run.asking.done():
        return None
    status, run.asking = run.asking.result(), None
    if status == run.status:
        return None
    run.status = status
    return status


def _message(kind: str, content: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(jsonable(content), allow_nan=False)}\n\n"
