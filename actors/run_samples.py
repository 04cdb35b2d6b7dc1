"""What a run sampled, as the rows that it writes down, and back: a run's samples are a dataset of preferences.

Log-probs are rounded to 5 digits.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from actors.config import RunDataset
from core.errors import UserError
from core.messages import Completion, Prompt, Rollout, RolloutGroup, VersionSpan
from core.ratings import load_jsonl
from core.sample_files import SAMPLES_FOLDER, step_files

REQUIRED_COLUMNS = (
    *("group", "policy_version", "prompt", "completion", "prompt_tokens", "token_ids", "truncated"),
    *("behavior_logprobs", "reference_logprobs", "rewards", "score"),
)


def rows_of(group: RolloutGroup) -> list[dict[str, Any]]:
    """One row a rollout, for JSON."""
    return [
        {
            "group": group.group_id,
            "policy_version": rollout.completion.policy_version,
            "prompt": rollout.completion.prompt.text,
            "completion": rollout.completion.text,
            "prompt_tokens": rollout.completion.num_prompt_tokens,
            "token_ids": rollout.completion.token_ids_T.tolist(),
            "truncated": rollout.completion.truncated,
            "behavior_logprobs": [round(float(x), 5) for x in rollout.completion.behavior_logprobs_T],
            "reference_logprobs": [round(float(x), 5) for x in rollout.reference_logprobs_T],
            "rewards": dict(rollout.rewards),
            "score": rollout.score,
            "kl_nats": rollout.kl_nats,
        }
        for rollout in group.rollouts
    ]


def load_samples(config: RunDataset, *, max_tokens: int) -> Iterator[RolloutGroup]:
    """The groups that a run sampled. Raises `UserError` if there are none."""
    folder = Path(config.path)
    files = [file for step, file in step_files(folder).items() if step >= config.first_step]
    if not files:
        raise UserError(
            f"{folder / SAMPLES_FOLDER}: no samples from step {config.first_step} on; give the folder of a run"
        )
    for file in files:
        for group in load_step(file):
            longest = max(len(rollout.completion.token_ids_T) for rollout in group.rollouts)
            if longest > max_tokens:
                raise UserError(
                    f"{file}: {group.group_id} has a sample of {longest} tokens, and model.max_model_len is "
                    f"{max_tokens}; set {longest} or more"
                )
            yield group


def load_step(file: Path) -> list[RolloutGroup]:
    """The groups of one step, in the order of their first rows. Raises `UserError` if one has two prompts."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in load_jsonl(file, REQUIRED_COLUMNS):
        members = groups.setdefault(str(row["group"]), [])
        members.append(row)
        first, prompt = members[0]["prompt"], row["prompt"]
        if prompt != first:
            raise UserError(
                f"{file}: {row['group']} has two prompts, {first!r:.60} and {prompt!r:.60}, so "
                "its completions cannot be compared: groups of several datasets have one name there, as older "
                "versions of Leash wrote them. Leave the step out (first_step), or make the run again."
            )
    return [
        RolloutGroup(group_id=name, rollouts=tuple(_rollouts(name, rows))) for name, rows in groups.items()
    ]


def _rollouts(group: str, rows: Iterable[dict[str, Any]]) -> Iterator[Rollout]:
    for index, row in enumerate(rows):
        token_ids_T = np.asarray(row["token_ids"], dtype=np.int32)
        num_prompt = int(row["prompt_tokens"])
        prompt = Prompt(prompt_id=group, text=row["prompt"], token_ids=token_ids_T[:num_prompt])
        version, num_sampled = row["policy_version"], len(token_ids_T) - num_prompt
        completion = Completion(
            request_id=f"{group}-{index}",
            prompt=prompt,
            token_ids_T=token_ids_T,
            sampled_T=np.arange(len(token_ids_T)) >= num_prompt,
            behavior_logprobs_T=np.asarray(row["behavior_logprobs"], dtype=np.float32),
            version_spans=(VersionSpan(policy_version=version, start=0, stop=num_sampled),),
            text=row["completion"],
            truncated=row["truncated"],
        )
        yield Rollout(
            completion=completion,
            reference_logprobs_T=np.asarray(row["reference_logprobs"], dtype=np.float32),
            rewards=row["rewards"],
            score=row["score"],
        )
