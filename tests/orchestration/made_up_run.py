"""The folder of a run that never was, written as a run writes it: line by line, while somebody looks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

WORDS = ("<end>", "This", "film", "is", "good", "bad", "dull")
"""The made-up model's tokens, by id; the first one is special."""


class MadeUpRun:
    """A run of `steps` steps."""

    def __init__(self, folder: Path, *, steps: int = 8, model: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        path = f'\n[model]\npath = "{model}"\n' if model else ""
        (folder / "recipe.toml").write_text(f'name = "made-up"\n{path}\n[trainer]\nsteps = {steps}\n')
        (folder / "samples").mkdir()

    def step(self, step: int, **figures: float | None) -> None:
        """One more record."""
        self.line("metrics.jsonl", {"step": step, "seconds_since_start": 10.0 * step} | figures)

    def event(self, step: int | None, kind: str, text: str) -> None:
        """Ten seconds after the last step, by a clock that began at noon of 2026-01-01 UTC."""
        time_s = 1767268800.0 + 10 * (step or 0)
        self.line("events.jsonl", {"time_s": time_s, "step": step, "kind": kind, "text": text})

    def line(self, file: str, row: dict[str, Any]) -> None:
        self.text(file, json.dumps(row) + "\n")

    def text(self, file: str, text: str) -> None:
        with (self.folder / file).open("a", encoding="utf-8") as stream:
            stream.write(text)

    def samples(self, step: int, groups: Sequence[Sequence[dict[str, Any]]]) -> None:
        """The rollouts of a step, by group."""
        rows = [row | {"group": f"group-{index}"} for index, group in enumerate(groups) for row in group]
        file = self.folder / "samples" / f"step-{step:06d}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def row(prompt: str, completion: str, score: float, *, reference: float = -1.0) -> dict[str, Any]:
    """A rollout of `WORDS`: each token with log-prob -1 under the policy that sampled it."""
    prompt_ids = [WORDS.index(word) for word in prompt.split()]
    sampled_ids = [WORDS.index(word) for word in completion.split()] + [0]
    nothing = [0.0] * len(prompt_ids)
    return {
        "policy_version": 3,
        "prompt": prompt,
        "completion": completion,
        "prompt_tokens": len(prompt_ids),
        "token_ids": prompt_ids + sampled_ids,
        "truncated": False,
        "behavior_logprobs": nothing + [-1.0] * len(sampled_ids),
        "reference_logprobs": nothing + [reference] * len(sampled_ids),
        "rewards": {"taste": score},
        "score": score,
        "kl_nats": (-1.0 - reference) * len(sampled_ids),
    }


def made_up_model(folder: Path) -> Path:
    """The folder of a model that has a tokenizer and nothing else."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([WORDS[0]])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
