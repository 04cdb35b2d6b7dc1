"""`leash dash`."""

import argparse
from pathlib import Path

from orchestration.command import AddCommand

_HELP = "show runs in the browser, live or over: curves, who waits for whom, events, every rollout"


def add_dashboard_command(add_command: AddCommand) -> None:
    """To the `leash` command."""
    dash = add_command("dash", _dash, _HELP)
    dash.add_argument(
        "folders", metavar="RUN", nargs="+", type=Path, help="folders of runs to compare, such as runs/a"
    )
    dash.add_argument("--port", type=int, default=0, help="default: a free one")
    dash.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve on; default: %(default)s, this machine alone; with another, a token is needed",
    )
    dash.add_argument(
        "--token",
        action="store_true",
        help="ask for a token here too, as on a machine that others log in to",
    )


def _dash(args: argparse.Namespace) -> None:
    # Imports Starlette and uvicorn, which no other command needs.
    from orchestration.dashboard.server import serve

    serve(args.folders, host=args.host, port=args.port, ask_for_token=args.token)
