"""The rollouts of a step, as the viewer shows them: groups in the file's order, then one group token by token."""

import statistics
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.sample_files import step_file
from orchestration.dashboard.json_lines import JsonLines, Row
from orchestration.dashboard.token_texts import token_texts

_COLUMNS: dict[str, type] = {
    **{"group": object, "prompt": str, "completion": str, "score": object, "rewards": dict},
    **{"prompt_tokens": int, "policy_version": int, "truncated": bool},
    **{"token_ids": list, "behavior_logprobs": list, "reference_logprobs": list},
}
"""Of a row, as `actors/run_samples.py` writes it."""


def groups_of_step(folder: Path, step: int) -> list[list[Row]]:
    """The rows of each prompt; a row that is being written is left out. Raises `UserError` for a damaged file."""
    file = JsonLines(step_file(folder, step), _COLUMNS)
    file.refresh()
    groups: dict[str, list[Row]] = {}
    for row in file.rows():
        groups.setdefault(str(row["group"]), []).append(row)
    return list(groups.values())


def summary(rows: list[Row]) -> dict[str, Any]:
    """A group without its tokens."""
    return {
        "group": rows[0]["group"],
        "prompt": rows[0]["prompt"],
        "completions": [
            {
                "text": row["completion"],
                "score": row["score"],
                "advantage": advantage,
                "rewards": row["rewards"],
                "kl_nats": row.get("kl_nats"),
                "tokens": len(row["token_ids"]) - row["prompt_tokens"],
                "truncated": row["truncated"],
                "policy_version": row["policy_version"],
            }
            for row, advantage in zip(rows, _advantages(rows), strict=True)
        ],
    }


def with_tokens(rows: list[Row], model: str | None, revision: str | None = None) -> dict[str, Any]:
    """A group with every token: id, text, whether it is a special one, and both log-probs.

    Where the tokenizer of `model` cannot be read, texts are None and `note` says why.
    """
    group = summary(rows)
    note = None
    texts = None
    try:
        texts = token_texts(model, revision) if model else None
    except UserError as error:
        note = str(error)
    for completion, row in zip(group["completions"], rows, strict=True):
        completion["num_prompt_tokens"] = row["prompt_tokens"]
        completion["token_ids"] = row["token_ids"]
        completion["token_texts"] = texts and [texts.text(token_id) for token_id in row["token_ids"]]
        completion["is_special"] = texts and [texts.is_special(token_id) for token_id in row["token_ids"]]
        completion["behavior_logprobs"] = row["behavior_logprobs"]
        completion["reference_logprobs"] = row["reference_logprobs"]
    return group | {"note": note if model else "the recipe names no model"}


def _advantages(rows: list[Row]) -> list[float | None]:
    """Each score less the group's mean; None where there is nothing to compare it with."""
    scores = [row["score"] for row in rows]
    if len(scores) < 2 or None in scores:
        return [None] * len(scores)
    mean = statistics.fmean(scores)
    return [score - mean for score in scores]
