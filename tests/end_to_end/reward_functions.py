"""Reward functions that the end-to-end runs name in their recipes: one to learn, and one that fails."""

from typing import Any


def letter_e(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Share of a completion's letters that are an e. Easy to learn, whatever the length."""
    return [completion.lower().count("e") / max(1, len(completion)) for completion in completions]


def raises(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    raise KeyError("no such table")
