"""`leash render`: files for other systems, made from a recipe. Its first argument says what is rendered."""

import argparse
from collections.abc import Callable

from orchestration.rendering.command import add_kuberay
from orchestration.run_commands import AddCommand, Command


def add_render_command(add_command: AddCommand) -> None:
    """To the `leash` command."""
    parser = add_command("render", _nothing, "write manifests for Kubernetes, made from a recipe")
    kinds = parser.add_subparsers(title="what to render", metavar="WHAT", required=True)

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        added = kinds.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(command=command)
        return added

    adders: list[Callable[[AddCommand], None]] = [add_kuberay]
    for adder in adders:
        adder(add)


def _nothing(args: argparse.Namespace) -> None:
    raise AssertionError("argparse asks for what to render")
