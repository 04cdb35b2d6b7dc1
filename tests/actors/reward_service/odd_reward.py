"""A reward function that does what the text says. It imports little: every process that calls it waits for that."""

import os
import time
from typing import Any

KEPT: list[bytearray] = []


def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    if "hang" in completions:
        time.sleep(1000)
    if "die" in completions:
        os._exit(3)
    while "hoard" in completions:
        KEPT.append(bytearray(2**24))
    if "raise" in completions:
        raise KeyError("lost")
    return [float(os.getpid()) if text == "who" else float(len(text)) for text in completions]
