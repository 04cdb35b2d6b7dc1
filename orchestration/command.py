"""How a part adds its commands to `leash`, without knowing the command line."""

import argparse
from collections.abc import Callable

Command = Callable[[argparse.Namespace], int | None]
"""What a command calls with its arguments; an exit code, if not 0."""
AddCommand = Callable[[str, Command, str], argparse.ArgumentParser]
"""Adds a command to `leash`: its name, what it calls, its help."""
