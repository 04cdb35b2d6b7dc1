"""`leash alarm RUN`: the same monitor over the folder of a run, and what it says."""

import argparse
from pathlib import Path

from orchestration.command import AddCommand


def add_alarm_command(add: AddCommand) -> None:
    """To the `leash` command."""
    command = add(
        "alarm", _alarm, "look through a run's completions for signs that the policy cheats its reward"
    )
    command.add_argument("folder", metavar="RUN", type=Path, help="folder of the run, such as runs/a")


def _alarm(args: argparse.Namespace) -> None:
    # Imports NumPy and the language model, which other commands do without.
    from orchestration.alarm.review import review, review_lines

    print("\n".join(review_lines(review(args.folder))))
