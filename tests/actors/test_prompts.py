"""Prompts: what is wrong with a file, who is held out, and in which order the others come."""

import json
from pathlib import Path
from typing import Any

import pytest

from actors.config import JsonLinesPrompts
from actors.prompts import load_prompts
from core.errors import UserError
from core.messages import Prompt
from tests.fakes import FakeChatTokenizer


class BeginningTokenizer(FakeChatTokenizer):
    """Begins every text with `<s>`, 9, and so does its chat template."""

    bos_token = "<s>"

    def __call__(self, text: list[str], *, add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        plain = super().__call__([one.removeprefix("<s>") for one in text])["input_ids"]
        begun = [one.startswith("<s>") + add_special_tokens for one in text]
        return {"input_ids": [[9] * times + ids for times, ids in zip(begun, plain, strict=True)]}

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, add_generation_prompt: bool, tokenize: bool
    ) -> str:
        return "<s>" + super().apply_chat_template(
            conversation, add_generation_prompt=add_generation_prompt, tokenize=tokenize
        )


def load(
    file: Path,
    *,
    num_heldout: int = 3,
    fraction: float = 0.5,
    tokenizer: FakeChatTokenizer | None = None,
    **changes: Any,
) -> Any:
    config = JsonLinesPrompts(kind="jsonl", path=str(file), heldout_fraction=fraction, **changes)
    return load_prompts(
        config,
        tokenizer or FakeChatTokenizer(),
        data_folder=None,
        num_heldout=num_heldout,
        max_prompt_tokens=5,
    )


def write(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Ten prompts, one of them twice."""
    rows = [{"prompt": f"this is {index}", "rating": index} for index in range(10)]
    return write(tmp_path / "prompts.jsonl", *rows, {"prompt": "this is 3", "rating": 3})


def texts(prompts: list[Prompt]) -> set[str]:
    return {prompt.text for prompt in prompts}


def test_no_text_is_both_trained_on_and_held_out(file: Path) -> None:
    training, heldout = load(file)
    assert (len(training), len(heldout)) == (7, 3)
    assert texts(training) | texts(heldout) == {f"this is {index}" for index in range(10)}
    assert not texts(training) & texts(heldout)


def test_who_is_held_out_does_not_depend_on_the_order_of_the_file(file: Path, tmp_path: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    (tmp_path / "turned.jsonl").write_text("\n".join(reversed(lines)), encoding="utf-8")
    first, turned = load(file), load(tmp_path / "turned.jsonl")
    assert [[p.prompt_id for p in part] for part in first] == [[p.prompt_id for p in part] for part in turned]


def test_the_held_out_share_is_bounded_by_number_and_by_fraction(file: Path) -> None:
    assert len(load(file, num_heldout=5, fraction=0.2)[1]) == 2
    assert len(load(file, num_heldout=1, fraction=0.9)[1]) == 1
    assert len(load(file, num_heldout=5, fraction=0.01)[1]) == 1


def test_a_prompt_keeps_its_tokens_and_its_other_columns(file: Path) -> None:
    training, heldout = load(file)
    for prompt in training + heldout:
        assert prompt.token_ids.tolist() == [4, 2, 1]
        assert prompt.token_ids.dtype == "int32"
        assert prompt.columns == {"rating": int(prompt.text.split()[-1])}
    assert len({prompt.prompt_id for prompt in training + heldout}) == 10


def test_the_column_of_the_prompt_can_be_named(tmp_path: Path) -> None:
    file = write(tmp_path / "q.jsonl", {"question": "a b"}, {"question": "c d", "prompt": "x"})
    training, heldout = load(file, num_heldout=1, column="question")
    assert texts(training) | texts(heldout) == {"a b", "c d"}


def test_a_conversation_becomes_text_that_ends_where_the_model_answers(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": word}], "answer": word} for word in ("ab", "abc")]
    training, heldout = load(write(tmp_path / "chats.jsonl", *rows))
    found = {prompt.text: (prompt.token_ids.tolist(), prompt.columns) for prompt in training + heldout}
    assert found == {
        " <user> ab </s> <assistant>": ([6, 2, 0, 11], {"answer": "ab"}),
        " <user> abc </s> <assistant>": ([6, 3, 0, 11], {"answer": "abc"}),
    }


def test_texts_and_conversations_begin_once(tmp_path: Path) -> None:
    file = write(tmp_path / "q.jsonl", {"prompt": "ab"}, {"prompt": [{"role": "user", "content": "abc"}]})
    training, heldout = load(file, tokenizer=BeginningTokenizer())
    found = {prompt.text: prompt.token_ids.tolist() for prompt in training + heldout}
    assert found == {"ab": [9, 2], "<s> <user> abc </s> <assistant>": [9, 6, 3, 0, 11]}


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (None, "prompt is null; give a text, or a list of messages"),
        ([], r"prompt is \[\]; give a text"),
        (1, "prompt is 1; give"),
        (True, "prompt is true; give"),
        ({}, "prompt is {}; give"),
        ({"a": 1}, 'prompt holds {"a": 1}, not a message with role and content'),
        (["a"], 'prompt holds "a", not a message'),
        ([{"role": "user", "content": None}], "prompt holds .*, not a message"),
    ],
)
def test_a_prompt_that_is_neither_text_nor_conversation_is_named(
    tmp_path: Path, value: object, complaint: str
) -> None:
    with pytest.raises(UserError, match=rf"q\.jsonl:2: {complaint}"):
        load(write(tmp_path / "q.jsonl", {"prompt": "a"}, {"prompt": value}, {"prompt": "b"}))


@pytest.mark.parametrize("other", [{"answer": 2}, {}, {"answer": 1, "hint": "x"}])
def test_a_prompt_that_is_there_twice_with_other_columns_is_refused(
    tmp_path: Path, other: dict[str, object]
) -> None:
    same, different = {"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}
    file = write(tmp_path / "q.jsonl", same, different, same, {"prompt": "a"} | other)
    name = "hint" if "hint" in other else "answer"
    with pytest.raises(UserError, match=rf"q\.jsonl:4: the same prompt as in .*q\.jsonl:1, .*same '{name}'"):
        load(file)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"prompt": "half', "not a JSON object"),
        ('["a list"]', "a JSON list where an object was expected"),
        ('{"question": "a b"}', "no column 'prompt'"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path: Path, line: str, complaint: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a b"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"prompts\.jsonl:3: {complaint}"):
        load(file)


def test_a_missing_an_empty_and_a_single_prompt_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.jsonl: cannot be read"):
        load(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match=r"empty\.jsonl: the dataset has no rows"):
        load(write(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match="1 different prompts; at least 2"):
        load(write(tmp_path / "same.jsonl", {"prompt": "a"}, {"prompt": "a"}))


@pytest.mark.parametrize(("text", "count"), [("one two three four five six", 6), ("", 0)])
def test_a_prompt_that_does_not_fit_is_named(tmp_path: Path, text: str, count: int) -> None:
    file = write(tmp_path / "prompts.jsonl", {"prompt": "a b"}, {"prompt": text})
    with pytest.raises(UserError, match=f"prompt '{text}' has {count} tokens; between 1 and 5 fit"):
        load(file, num_heldout=1)
    write(file, {"prompt": "a b"}, {"prompt": "one two three four five"})
    load(file, num_heldout=1)
