"""The command `leash render`: files that follow from what the code declares, written where they are used."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from core.errors import UserError
from orchestration.command import AddCommand, Command
from orchestration.monitoring.files import monitoring_files
from orchestration.monitoring.page import metrics_page
from orchestration.rendering.command import add_kuberay
from orchestration.run_folder import write_atomically

_NOTE = "Written by `leash render {}`; changes made here are lost."

Content = str | Mapping[str, Any]
"""Text as it is, or a document that becomes JSON or YAML, as the name of its file says."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """Something that can be rendered."""

    files: Callable[[], Mapping[str, Content]]
    """Path within the folder -> content."""
    folder: str
    """Where they go, unless told otherwise."""
    text: str
    """What they are, for people who ask for help."""


RENDERINGS = {
    "monitoring": Rendering(monitoring_files, "deploy/monitoring", "configuration of Prometheus and Grafana"),
    "docs": Rendering(lambda: {"metrics.md": metrics_page()}, "docs", "the page of all metrics"),
}


def add_render_commands(add_command: AddCommand) -> None:
    """To the `leash` command."""
    render = add_command("render", _render, "write files that follow from what the code declares")
    whats = render.add_subparsers(title="what to render", metavar="WHAT", dest="what", required=True)

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        added = whats.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(command=command)
        return added

    add_kuberay(add)
    for what, rendering in RENDERINGS.items():
        parser = add(what, _render, rendering.text)
        parser.add_argument(
            "folder",
            metavar="FOLDER",
            type=Path,
            nargs="?",
            default=Path(rendering.folder),
            help="default: %(default)s",
        )


def rendered(what: str) -> dict[str, str]:
    """Path within the folder -> text, of everything that a rendering writes."""
    note = _NOTE.format(what)
    return {path: _text_of(path, content, note) for path, content in RENDERINGS[what].files().items()}


def _render(args: argparse.Namespace) -> None:
    folder: Path = args.folder
    for path, text in rendered(args.what).items():
        file = folder / path
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, text)
        except OSError as error:
            raise UserError(f"{file}: cannot be written ({error.strerror}); give another FOLDER") from error
        print(file)


def _text_of(path: str, content: Content, note: str) -> str:
    if isinstance(content, str):
        return content
    if path.endswith(".json"):  # has no comments
        return json.dumps(content, indent=2) + "\n"
    return f"# {note}\n" + yaml.safe_dump(content, sort_keys=False, width=110, allow_unicode=True)
