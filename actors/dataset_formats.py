"""One row of a dataset in one of TRL's formats -> a prompt and its completions with their scores.

    text | messages                    language modeling
    prompt, completion [, score]       prompt-completion
    [prompt,] chosen, rejected         preference
    prompt, completions, ratings       a ranking of several completions (ours: TRL has none)

Prompts and completions are texts, or lists of messages that the model's chat template turns into text.
"""

import json
import math
from contextlib import suppress
from typing import Any, Protocol

from jinja2 import TemplateError

from core.errors import UserError

Texts = tuple[str, list[tuple[str, float]]]
"""A prompt, and its completions with their scores."""


class ChatTokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    eos_token_id: int | None
    eos_token: str | None
    bos_token: str | None

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Any: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, add_generation_prompt: bool, tokenize: bool
    ) -> Any: ...


def read_prompt(value: object, where: str, column: str, tokenizer: ChatTokenizer) -> str:
    """The text of a prompt; a conversation ends where the model is to answer. Raises `UserError` that begins with
    `where`."""
    if isinstance(value, str):
        return value
    if not value or not isinstance(value, list | dict):
        raise UserError(
            f"{where}: {column} is {_shown(value)}; give a text, or a list of messages with role and content"
        )
    return _templated(_messages(value, where, column), where, tokenizer, is_asked=True)


def is_begun(text: str, tokenizer: ChatTokenizer) -> bool:
    """Whether the mark of a text's beginning is there already: a chat template writes it itself."""
    return tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)


def read_row(
    row: dict[str, object], where: str, tokenizer: ChatTokenizer, *, rated_for: str | None = None
) -> Texts:
    """The row's format is told by its columns. Raises `UserError` that begins with `where`, also for chosen and
    rejected without their scores if these are needed: `rated_for` is the setting that needs them."""
    row = dict(row)
    is_compared = {"chosen", "rejected"} <= row.keys() or {"completions", "ratings"} <= row.keys()
    if not is_compared and "text" in row:  # or else it is the whole of one of those that are compared
        return "", [(_string(row["text"], where, "text"), 0.0)]
    if not is_compared and "messages" in row:
        messages = _messages(row["messages"], where, "messages")
        row = {"prompt": messages[:-1], "completion": messages[-1:]}
    if "chosen" in row and "rejected" in row:
        num_scores = len({"score_chosen", "score_rejected"} & row.keys())
        if rated_for and num_scores == 0:
            raise UserError(
                f"{where}: says which text is better but not by how much, which {rated_for} learns from; give "
                "score_chosen and score_rejected, or change that setting"
            )
        if num_scores == 1:
            raise UserError(f"{where}: one of score_chosen and score_rejected is missing; give both or none")
        completions = [row["chosen"], row["rejected"]]
        scores = [row.get("score_chosen", 1.0), row.get("score_rejected", 0.0)]
    elif "completions" in row and "ratings" in row:
        completions, scores = _list(row["completions"], where), _list(row["ratings"], where)
    elif "completion" in row:
        completions, scores = [row["completion"]], [row.get("score", 0.0)]
    else:
        raise UserError(
            f"{where}: columns {', '.join(map(repr, row)) or 'none'} are of no known format; it needs text, "
            "messages, prompt and completion, chosen and rejected, or completions and ratings"
        )
    if len(completions) != len(scores) or not completions:
        raise UserError(
            f"{where}: {len(completions)} completions but {len(scores)} ratings; give one for each"
        )
    prompt, texts = _render(row.get("prompt", ""), completions, where, tokenizer)
    numbers = [_number(score, where) for score in scores]
    if "chosen" in row and "rejected" in row and numbers[0] < numbers[1]:
        raise UserError(
            f"{where}: chosen has the score {numbers[0]:g} and rejected {numbers[1]:g}, so the row contradicts "
            "itself; swap the texts or the scores, or leave score_chosen and score_rejected out"
        )
    return prompt, list(zip(texts, numbers, strict=True))


def _render(
    prompt: object, completions: list[object], where: str, tokenizer: ChatTokenizer
) -> tuple[str, list[str]]:
    """Prompt and completions as text; conversations by the model's chat template."""
    if isinstance(prompt, str) and all(isinstance(completion, str) for completion in completions):
        return prompt, [str(completion) for completion in completions]
    asked = _messages(prompt, where, "prompt") if prompt and not isinstance(prompt, str) else []
    answers = [_messages(completion, where, "a completion") for completion in completions]
    if isinstance(prompt, str) and prompt and not all(_begins_with_a_question(answer) for answer in answers):
        raise UserError(f"{where}: prompt holds {_shown(prompt)}, not a message with role and content")
    if not asked:  # an implicit prompt: what the conversations begin with
        asked = answers[0][:-1]
        if any(answer[:-1] != asked for answer in answers):
            raise UserError(
                f"{where}: the conversations differ before their last message; give them one prompt"
            )
        answers = [answer[-1:] for answer in answers]
    if not asked or not all(answers):
        raise UserError(f"{where}: a conversation needs a message that asks and one that answers")
    head = _templated(asked, where, tokenizer, is_asked=True)
    texts = []
    for answer in answers:
        whole = _templated(asked + answer, where, tokenizer, is_asked=False)
        if not whole.startswith(head):
            raise UserError(
                f"{where}: the chat template writes the prompt in another way once it is answered"
            )
        texts.append(_ended_once(whole[len(head) :], tokenizer.eos_token))
    return head, texts


def _begins_with_a_question(conversation: list[dict[str, str]]) -> bool:
    """Then a text beside it as prompt says what is in it already."""
    return len(conversation) > 1 and conversation[0]["role"] != "assistant"


def _templated(
    messages: list[dict[str, str]], where: str, tokenizer: ChatTokenizer, *, is_asked: bool
) -> str:
    """The conversation as text; `is_asked`: with the beginning of the answer that is to come."""
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=is_asked, tokenize=False)
    except (ValueError, TemplateError) as error:  # there is no template, or it refuses the conversation
        raise UserError(
            f"{where}: the model's chat template cannot write this conversation ({error}). Give texts, or a "
            "conversation and a model that go together."
        ) from error
    return str(text)


def _ended_once(text: str, end: str | None) -> str:
    """Without the white space that some templates put behind the end token."""
    stripped = text.rstrip()
    return stripped if end and stripped.endswith(end) else text


def _string(value: object, where: str, column: str) -> str:
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {column} is {_shown(value)}, not a text")
    return value


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise UserError(f"{where}: {_shown(value)} is not a list")
    return value


def _number(value: object, where: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):
            number = float(value)
            if math.isfinite(number):
                return number
    raise UserError(f"{where}: the score {_shown(value)} is not a number")


def _messages(value: object, where: str, column: str) -> list[dict[str, str]]:
    messages: list[Any] = value if isinstance(value, list) else [value]
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise UserError(f"{where}: {column} holds {_shown(message)}, not a message with role and content")
    return messages


def _shown(value: object) -> str:
    """Its beginning; tables hold dates and bytes too."""
    return json.dumps(value, default=str)[:60]
