"""The one noun of the rules between sections; `contradictions.py` finds them all."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two sections that do not go together."""

    keys: tuple[str, ...]
    """Dotted keys that have a part in it; the first is the one that is reported."""
    rule: str
    """What must hold."""
    instead: str
    """What to set."""
