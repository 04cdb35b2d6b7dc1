"""A text that a policy or another process wrote, as a terminal may show it."""

import unicodedata

_KEPT = "\n\t\u200c\u200d"
"""Line breaks and tabs, and what joins and parts letters and emoji."""


def printable(text: str) -> str:
    """Letters, signs and spaces of every script; nothing that moves the cursor or turns a line round."""
    return "".join(
        char for char in text if char.isprintable() or char in _KEPT or unicodedata.category(char) == "Zs"
    )
