"""Rows of every format that TRL knows, and what is said of the others."""

import copy
import datetime
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError

from actors.dataset_formats import Texts, read_prompt, read_row
from core.errors import UserError
from tests.fakes import FakeChatTokenizer

WHERE = "texts.jsonl:3"


def read(row: dict[str, Any]) -> Texts:
    return read_row(row, WHERE, FakeChatTokenizer())


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    ("row", "prompt", "completions"),
    [
        ({"text": "a film"}, "", [("a film", 0.0)]),
        ({"prompt": "a", "completion": " film"}, "a", [(" film", 0.0)]),
        ({"completion": "film"}, "", [("film", 0.0)]),
        ({"prompt": "a", "completion": " film", "score": 3}, "a", [(" film", 3.0)]),
        ({"prompt": "a", "completion": "", "score": -0.5}, "a", [("", -0.5)]),
        ({"prompt": "a", "chosen": " b", "rejected": " c"}, "a", [(" b", 1.0), (" c", 0.0)]),
        ({"rejected": "a c", "chosen": "a b"}, "", [("a b", 1.0), ("a c", 0.0)]),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 9, "score_rejected": 2.5},
            "a",
            [("b", 9.0), ("c", 2.5)],
        ),
        (
            {"prompt": "a", "completions": [" b", " c", " d"], "ratings": [1, -4.5, 2]},
            "a",
            [(" b", 1.0), (" c", -4.5), (" d", 2.0)],
        ),
    ],
)
def test_standard_formats(row: dict[str, Any], prompt: str, completions: list[tuple[str, float]]) -> None:
    assert read(row | {"source": "another column"}) == (prompt, completions)


ASKED = " <user> hi </s> <assistant>"


@pytest.mark.parametrize(
    ("row", "prompt", "completions"),
    [
        ({"messages": [user("hi"), assistant("yo")]}, ASKED, [(" yo </s>", 0.0)]),
        ({"prompt": [user("hi")], "completion": [assistant("yo")]}, ASKED, [(" yo </s>", 0.0)]),
        (
            {"prompt": [user("hi")], "completion": [assistant("yo")], "score": 2},
            ASKED,
            [(" yo </s>", 2.0)],
        ),
        (
            {"prompt": user("hi"), "chosen": assistant("yo"), "rejected": assistant("go")},
            ASKED,
            [(" yo </s>", 1.0), (" go </s>", 0.0)],
        ),
        (
            {
                "prompt": [user("hi")],
                "completions": [[assistant("a")], [assistant("b")], [assistant("c")]],
                "ratings": [0, 1, 2],
            },
            ASKED,
            [(" a </s>", 0.0), (" b </s>", 1.0), (" c </s>", 2.0)],
        ),
        (
            {"prompt": [user("hi")], "completion": [assistant("yo"), user("so"), assistant("no")]},
            ASKED,
            [(" yo </s> <user> so </s> <assistant> no </s>", 0.0)],
        ),
        (
            {"messages": [user("hi"), assistant("yo"), user("so"), assistant("no")]},
            " <user> hi </s> <assistant> yo </s> <user> so </s> <assistant>",
            [(" no </s>", 0.0)],
        ),
    ],
)
def test_conversations_go_through_the_chat_template(
    row: dict[str, Any], prompt: str, completions: list[tuple[str, float]]
) -> None:
    assert read(row) == (prompt, completions)


@pytest.mark.parametrize("prompt", [{}, {"prompt": []}, {"prompt": ""}])
def test_conversations_without_a_prompt_hold_it_themselves(prompt: dict[str, Any]) -> None:
    row = prompt | {"chosen": [user("hi"), assistant("yo")], "rejected": [user("hi"), assistant("go")]}
    assert read(row) == (ASKED, [(" yo </s>", 1.0), (" go </s>", 0.0)])


CHOSEN, REJECTED = [user("hi"), assistant("yo")], [user("hi"), assistant("go")]


@pytest.mark.parametrize(
    ("row", "prompt", "completions"),
    [
        (  # the columns of HuggingFaceH4/ultrafeedback_binarized
            {"prompt": "hi", "prompt_id": "0f", "chosen": CHOSEN, "rejected": REJECTED, "messages": CHOSEN}
            | {"score_chosen": 8.5, "score_rejected": 3.0},
            ASKED,
            [(" yo </s>", 8.5), (" go </s>", 3.0)],
        ),
        (
            {"prompt": "hi", "completions": [CHOSEN, REJECTED], "ratings": [2, 1], "messages": CHOSEN},
            ASKED,
            [(" yo </s>", 2.0), (" go </s>", 1.0)],
        ),
        ({"text": "a b", "prompt": "a", "chosen": " b", "rejected": " c"}, "a", [(" b", 1.0), (" c", 0.0)]),
    ],
)
def test_a_comparison_is_more_than_one_of_its_texts(
    row: dict[str, Any], prompt: str, completions: list[tuple[str, float]]
) -> None:
    assert read(row) == (prompt, completions)


@pytest.mark.parametrize(
    "answer", [[assistant("yo")], [assistant("yo"), user("so"), assistant("no")], [user("hi")]]
)
def test_a_text_does_not_ask_for_messages_that_do_not_begin_with_it(answer: list[dict[str, str]]) -> None:
    with pytest.raises(
        UserError, match=r'^texts.jsonl:3: prompt holds "hi", not a message with role and content'
    ):
        read({"prompt": "hi", "completion": answer})


@given(
    st.text(),
    st.lists(st.tuples(st.text(), st.integers(-9, 9) | st.floats(-1e9, 1e9)), min_size=1, max_size=9),
)
def test_any_text_and_any_finite_score_come_out_as_they_are(
    prompt: str, rated: list[tuple[str, float]]
) -> None:
    row = {"prompt": prompt, "completions": [t for t, _ in rated], "ratings": [r for _, r in rated]}
    found = read(json.loads(json.dumps(row)))
    assert found == (prompt, rated)
    assert all(type(score) is float for _, score in found[1])


@given(st.lists(st.text(max_size=9), min_size=2, max_size=6))
def test_prompt_and_completion_make_up_the_conversation(contents: list[str]) -> None:
    """Wherever it is cut, nothing of what the template writes is lost or written twice."""
    messages = [assistant(c) if index % 2 else user(c) for index, c in enumerate(contents)]
    if messages[-1]["role"] == "user":
        messages.append(assistant("yo"))
    whole = FakeChatTokenizer().apply_chat_template(messages, add_generation_prompt=False, tokenize=False)
    for cut in range(1, len(messages), 2):
        prompt, [(completion, _)] = read({"prompt": messages[:cut], "completion": messages[cut:]})
        assert prompt + completion == whole
        assert prompt.endswith(" <assistant>")


def test_texts_that_score_the_same_contradict_nothing() -> None:
    row = {"chosen": "a", "rejected": "b", "score_chosen": 4, "score_rejected": 4}
    assert read(row) == ("", [("a", 4.0), ("b", 4.0)])


def test_a_row_stays_as_it_was() -> None:
    row = {"messages": [user("hi"), assistant("yo")], "id": 5}
    before = copy.deepcopy(row)
    read(row)
    assert row == before


NO_MESSAGE = "not a message with role and content"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (
            {"question": "a", "answer": "b"},
            "columns 'question', 'answer' are of no known format; it needs text, messages, prompt and "
            "completion, chosen and rejected, or completions and ratings",
        ),
        ({"prompt": "a"}, "columns 'prompt' are of no known format"),
        ({"prompt": "a", "chosen": "b"}, "columns 'prompt', 'chosen' are of no known format"),
        ({"prompt": "a", "completions": ["b"]}, "columns 'prompt', 'completions' are of no known format"),
        ({"completions": ["a", "b"], "ratings": [1]}, "2 completions but 1 ratings; give one for each"),
        ({"completions": [], "ratings": []}, "0 completions but 0 ratings; give one for each"),
        ({"completions": "a", "ratings": [1]}, '"a" is not a list'),
        ({"completions": ["a"], "ratings": 1}, "1 is not a list"),
        ({"completion": "a", "score": "good"}, 'the score "good" is not a number'),
        ({"completion": "a", "score": True}, "the score true is not a number"),
        ({"completion": "a", "score": None}, "the score null is not a number"),
        ({"completions": ["a", "b"], "ratings": [1, float("nan")]}, "the score NaN is not a number"),
        (
            {"chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": float("-inf")},
            "the score -Infinity is not",
        ),
        ({"text": ""}, 'text is "", not a text'),
        ({"text": ["a"]}, 'text is ["a"], not a text'),
        ({"text": None, "prompt": "a", "completion": "b"}, "text is null, not a text"),
        ({"messages": "hi"}, f'messages holds "hi", {NO_MESSAGE}'),
        ({"messages": [user("hi"), {"role": "assistant"}]}, f'holds {{"role": "assistant"}}, {NO_MESSAGE}'),
        (
            {"messages": [{"role": "user", "content": ["a"]}]},
            f'messages holds {{"role": "user", "content": ["a"]}}, {NO_MESSAGE}',
        ),
        ({"prompt": 5, "completion": "a"}, f"prompt holds 5, {NO_MESSAGE}"),
        ({"prompt": "hi", "completion": [assistant("yo")]}, f'prompt holds "hi", {NO_MESSAGE}'),
        ({"prompt": [user("hi")], "completion": "yo"}, f'a completion holds "yo", {NO_MESSAGE}'),
        ({"messages": []}, "a conversation needs a message that asks and one that answers"),
        ({"messages": [user("hi")]}, "a conversation needs a message that asks"),
        ({"chosen": [], "rejected": []}, "a conversation needs a message that asks"),
        ({"prompt": [user("hi")], "completion": []}, "a conversation needs a message that asks"),
        (
            {"chosen": [user("A"), assistant("yo")], "rejected": [user("B"), assistant("no")]},
            "the conversations differ before their last message; give them one prompt",
        ),
        ({"completion": "a", "score": 10**400}, "is not a number"),
        ({}, "columns none are of no known format"),
        (
            {"chosen": "a", "rejected": "b", "score_chosen": 3, "score_rejected": 4.5},
            "chosen has the score 3 and rejected 4.5, so the row contradicts itself",
        ),
        (
            {"chosen": "a", "rejected": "b", "score_rejected": 2},
            "one of score_chosen and score_rejected is m",
        ),
        ({"chosen": "a", "rejected": "b", "score_chosen": 7}, "score_rejected is missing; give both or none"),
        ({"text": datetime.date(2026, 1, 2)}, 'text is "2026-01-02", not a text'),
    ],
)
def test_a_row_that_cannot_be_read_is_explained_behind_its_place(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as raised:
        read(row)
    assert str(raised.value).startswith(f"{WHERE}: ")
    assert complaint in str(raised.value)


def test_an_explanation_shows_the_beginning_of_a_long_value() -> None:
    with pytest.raises(UserError) as raised:
        read({"completion": "a", "score": "x" * 1000})
    assert str(raised.value) == f'{WHERE}: the score "{"x" * 59} is not a number'


class ForgetfulTokenizer(FakeChatTokenizer):
    """Leaves out earlier turns, as templates do that drop the thoughts of earlier answers."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, add_generation_prompt: bool, tokenize: bool
    ) -> str:
        return super().apply_chat_template(
            conversation[-1:], add_generation_prompt=add_generation_prompt, tokenize=tokenize
        )


def test_a_template_that_changes_the_prompt_once_it_is_answered_is_refused() -> None:
    row: dict[str, object] = {"prompt": [user("hi")], "completion": [assistant("yo")]}
    with pytest.raises(UserError, match=f"^{WHERE}: the chat template writes the prompt in another way"):
        read_row(row, WHERE, ForgetfulTokenizer())


class StrictTokenizer(FakeChatTokenizer):
    """Takes no conversation that begins with an answer."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, add_generation_prompt: bool, tokenize: bool
    ) -> str:
        if conversation[0]["role"] != "user":
            raise TemplateError("roles must alternate")
        raise ValueError("tokenizer.chat_template is not set")


@pytest.mark.parametrize(
    ("asks", "reason"), [(user, "chat_template is not set"), (assistant, "must alternate")]
)
def test_a_conversation_that_the_template_refuses_is_explained(asks: Any, reason: str) -> None:
    with pytest.raises(UserError, match=f"^{WHERE}: the model's chat template cannot write this .*{reason}"):
        read_row({"prompt": [asks("hi")], "completion": [assistant("yo")]}, WHERE, StrictTokenizer())
    with pytest.raises(UserError, match=f"^{WHERE}: the model's chat template cannot write this .*{reason}"):
        read_prompt([asks("hi")], WHERE, "prompt", StrictTokenizer())
