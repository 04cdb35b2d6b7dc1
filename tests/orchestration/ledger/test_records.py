"""Records and groups as bytes: what goes in comes out, bit for bit."""

import dataclasses
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.messages import RolloutGroup
from orchestration.ledger.records import (
    RECORDS,
    Acknowledged,
    Begun,
    Committed,
    Discarded,
    Finished,
    Noted,
    Opened,
    Record,
    Refused,
    RolledBack,
    pack,
    pack_group,
    unpack,
    unpack_group,
)
from tests.fakes import make_completion, make_group, make_prompt, make_rollout

EXAMPLES: list[Record] = [
    Opened(committed_step=3, groups_per_step=4, journals_groups=True, time_s=1.5),
    Acknowledged(number=5, num_rollouts=2, group=b"\x00\xff"),
    Refused(number=5, num_rollouts=2, reason="stale lease"),
    Discarded(number=5, num_rollouts=2, reason="no spread", acknowledged=False),
    Begun(step=2, numbers=(4, 5, 6, 7)),
    Committed(step=2),
    RolledBack(step=0),
    Finished(reason="done"),
    Noted(kind="worker joined", fields={"worker": "rollout-1", "of": [1, {"a": None}]}, time_s=2.0),
]


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)
def test_a_record_comes_back(record: Record) -> None:
    if isinstance(record, Noted):
        expected: Record = dataclasses.replace(record, fields={"worker": "rollout-1", "of": (1, {"a": None})})
    else:
        expected = record
    assert unpack(pack(record)) == expected


def test_every_kind_of_record_has_an_example() -> None:
    assert {type(record).__name__ for record in EXAMPLES} == RECORDS.keys()


def test_a_record_is_a_map_of_its_fields() -> None:
    """What is on disk in the folders of runs must stay readable: names and types as here."""
    content = msgpack.unpackb(pack(Begun(step=2, numbers=(4, 5))))
    assert content == {"record": "Begun", "step": 2, "numbers": [4, 5]}


def test_a_record_of_a_newer_leash_is_named() -> None:
    with pytest.raises(UserError, match="a record 'Melted', which this Leash does not know"):
        unpack(msgpack.packb({"record": "Melted", "step": 2}))


def leaves(message: Any) -> Any:
    """A message down to its numbers, arrays as type and bytes: equal if and only if bit for bit the same."""
    if dataclasses.is_dataclass(message):
        names = [field.name for field in dataclasses.fields(message) if field.name != "columns"]
        return [type(message).__name__, *((name, leaves(getattr(message, name))) for name in names)]
    if isinstance(message, tuple):
        return [leaves(part) for part in message]
    if isinstance(message, np.ndarray):
        return (message.dtype.str, message.shape, message.tobytes())
    if isinstance(message, dict):
        return [(name, leaves(part)) for name, part in message.items()]
    return (type(message).__name__, np.float64(message).tobytes() if isinstance(message, float) else message)


floats = st.floats(width=32)
texts = st.text() | st.just("half a pair \ud83d")


@st.composite
def groups(draw: st.DrawFn) -> RolloutGroup:
    prompts = [
        make_prompt(*ids, text=text)
        for ids, text in draw(
            st.lists(
                st.tuples(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=3), texts),
                min_size=1,
                max_size=2,
            )
        )
    ]
    rollouts = []
    for index in range(draw(st.integers(1, 3))):
        behavior = draw(st.lists(floats, min_size=1, max_size=4))
        completion = make_completion(
            *draw(st.lists(st.integers(0, 2**31 - 1), min_size=len(behavior), max_size=len(behavior))),
            prompt=draw(st.sampled_from(prompts)),
            request_id=f"request-{index}",
            versions=draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=3)),
            behavior=behavior,
            text=draw(texts),
        )
        reference = draw(st.lists(floats, min_size=len(behavior), max_size=len(behavior)))
        rollout = make_rollout(completion, score=draw(st.floats()), reference=reference)
        rewards = draw(st.dictionaries(texts, st.floats(), max_size=3))
        truncated = dataclasses.replace(completion, truncated=draw(st.booleans()))
        rollouts.append(dataclasses.replace(rollout, completion=truncated, rewards=rewards))
    return make_group(draw(texts), rollouts)


@settings(deadline=None, max_examples=60)
@given(group=groups())
def test_a_group_comes_back_bit_for_bit(group: RolloutGroup) -> None:
    again = unpack_group(pack_group(group))
    assert leaves(again) == leaves(group)
    assert pack_group(again) == pack_group(group)


def test_groups_that_differ_in_one_bit_differ_as_bytes() -> None:
    def group(logprob: float, version: int = 3) -> bytes:
        completion = make_completion(5, behavior=[logprob], versions=[version])
        return pack_group(make_group("group-1", [make_rollout(completion)]))

    assert group(-0.1) == group(-0.1)
    assert group(-0.1) != group(float(np.nextafter(np.float32(-0.1), np.float32(0))))
    assert group(0.0) != group(-0.0)
    assert group(-0.1) != group(-0.1, version=4)


def test_columns_are_left_out_and_prompts_are_shared() -> None:
    prompt = make_prompt(1, 2, text="a film", rating=5)
    rollouts = [make_rollout(make_completion(token, prompt=prompt)) for token in (7, 8)]
    again = unpack_group(pack_group(make_group("group-1", rollouts)))
    assert again.prompt.columns == {}
    assert again.rollouts[0].completion.prompt is again.rollouts[1].completion.prompt
    assert again.prompt.token_ids.flags.writeable


def test_numbers_of_numpy_are_numbers() -> None:
    """A reward function may return them."""
    tenth: Any = np.float32(0.1)
    rollout = make_rollout(make_completion(5), score=tenth)
    (again,) = unpack_group(pack_group(make_group("group-1", [rollout]))).rollouts
    assert [again.score, again.rewards["fake"]] == [tenth, tenth]
    assert type(again.score) is float
