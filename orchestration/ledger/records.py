"""What the ledger of a run is made of, record by record, and how a record and a group become bytes and come back.

A record is a msgpack map of its fields; its name, under "record", is the class's, so a class renamed is a new
format. Arrays are raw bytes with their type, so that floats come back bit for bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np

from core.errors import UserError
from core.messages import Completion, Prompt, Rollout, RolloutGroup, VersionSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A driver took over. Later records of steps count from here."""

    committed_step: int
    """Of the newest whole checkpoint on disk; 0 if there was none."""
    groups_per_step: int
    journals_groups: bool
    """False where a dataset holds the texts: nothing is sampled, so nothing is acknowledged."""
    time_s: float
    """Wall clock, seconds since 1970."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """A group was accepted. It will be in a committed step, or be discarded."""

    number: int
    num_rollouts: int
    group: bytes
    """As `pack_group` writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A group was turned away: there is one for its number, or will be."""

    number: int
    num_rollouts: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Discarded:
    """Trajectories that will never be trained on."""

    number: int
    num_rollouts: int
    reason: str
    acknowledged: bool
    """True if they are the group that was acknowledged under this number, which is free again from then on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The manifest of a step: the numbers of its groups, in their order in the batch."""

    step: int
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """The checkpoint of this step is whole: it and those before it are never undone by a crash."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """The learner is back at the checkpoint of this step: later ones did not happen."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The run is over."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """Anything else that a reader of the run wants to know: settings changed, workers that joined or died."""

    kind: str
    fields: Mapping[str, Any]
    time_s: float
    """Wall clock, seconds since 1970."""


Record = Opened | Acknowledged | Refused | Discarded | Begun | Committed | RolledBack | Finished | Noted

RECORDS: dict[str, type[Record]] = {
    kind.__name__: kind
    for kind in (
        *(Opened, Acknowledged, Refused, Discarded, Begun),
        *(Committed, RolledBack, Finished, Noted),
    )
}


def pack(record: Record) -> bytes:
    """The record as bytes, to append to a journal."""
    content = {field.name: getattr(record, field.name) for field in fields(record)}
    return _packb({"record": type(record).__name__} | content)


def unpack(payload: bytes) -> Record:
    """What `pack` wrote; lists come back as tuples. Raises `UserError` for a record of a newer Leash."""
    content = _unpackb(payload)
    name = content.pop("record")
    if name not in RECORDS:
        raise UserError(f"the ledger holds a record {name!r}, which this Leash does not know; update it")
    return RECORDS[name](**content)


def pack_group(group: RolloutGroup) -> bytes:
    """The group as bytes; equal groups give equal bytes. Of its prompts `columns` is left out: the rewards, for
    which it is there, have read it."""
    prompts: dict[tuple[Any, ...], int] = {}
    rollouts = []
    for rollout in group.rollouts:
        completion = rollout.completion
        prompt = (completion.prompt.prompt_id, completion.prompt.text, *_array(completion.prompt.token_ids))
        rollouts.append(
            {
                "request_id": completion.request_id,
                "prompt": prompts.setdefault(prompt, len(prompts)),
                "token_ids": _array(completion.token_ids_T),
                "sampled": _array(completion.sampled_T),
                "behavior_logprobs": _array(completion.behavior_logprobs_T),
                "version_spans": [
                    (int(span.policy_version), int(span.start), int(span.stop))
                    for span in completion.version_spans
                ],
                "text": completion.text,
                "truncated": bool(completion.truncated),
                "reference_logprobs": _array(rollout.reference_logprobs_T),
                "rewards": {name: float(reward) for name, reward in rollout.rewards.items()},
                "score": float(rollout.score),
            }
        )
    return _packb({"group_id": group.group_id, "prompts": list(prompts), "rollouts": rollouts})


def unpack_group(payload: bytes) -> RolloutGroup:
    """The group that `pack_group` wrote, bit for bit, its prompts without `columns`."""
    content = _unpackb(payload)
    prompts = [
        Prompt(prompt_id=prompt_id, text=text, token_ids=_from_array(array))
        for prompt_id, text, *array in content["prompts"]
    ]
    rollouts = [_unpack_rollout(row, prompts[row["prompt"]]) for row in content["rollouts"]]
    return RolloutGroup(group_id=content["group_id"], rollouts=tuple(rollouts))


def _unpack_rollout(row: Mapping[str, Any], prompt: Prompt) -> Rollout:
    completion = Completion(
        request_id=row["request_id"],
        prompt=prompt,
        token_ids_T=_from_array(row["token_ids"]),
        sampled_T=_from_array(row["sampled"]),
        behavior_logprobs_T=_from_array(row["behavior_logprobs"]),
        version_spans=tuple(
            VersionSpan(policy_version=version, start=start, stop=stop)
            for version, start, stop in row["version_spans"]
        ),
        text=row["text"],
        truncated=row["truncated"],
    )
    return Rollout(
        completion=completion,
        reference_logprobs_T=_from_array(row["reference_logprobs"]),
        rewards=row["rewards"],
        score=row["score"],
    )


def _array(array: np.ndarray) -> tuple[str, bytes]:
    """Type and bytes of an array of rank 1."""
    return array.dtype.str, array.tobytes()


def _from_array(array: tuple[str, bytes]) -> np.ndarray:
    dtype, content = array
    return np.frombuffer(content, dtype=dtype).copy()  # writable, as one that was sampled


def _packb(content: Mapping[str, Any]) -> bytes:
    # A completion cut in the middle of a character may hold half a surrogate pair.
    return bytes(msgpack.packb(content, unicode_errors="surrogatepass"))


def _unpackb(payload: bytes) -> dict[str, Any]:
    return dict(msgpack.unpackb(payload, use_list=False, unicode_errors="surrogatepass"))
