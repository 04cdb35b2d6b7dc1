"""What goes over the wire between a run and a reward server: JSON, checked at both ends.

The server's OpenAPI document is made of these classes.
"""

from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue

from core.messages import Completion, Prompt, VersionSpan

MAX_BODY_BYTES = 16 * 2**20
"""Of one request: hundreds of completions of thousands of tokens."""
MAX_ITEMS = 1024
"""Completions of one request."""

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Message(BaseModel):
    """Strict: "1" is no number, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",  # else a column's NaN would become null on the way
    )


class ScoreRequest(Message):
    """A completion to score."""

    prompt: str
    """Text of the prompt."""
    completion: str
    """Text of the completion, special tokens left out."""
    prompt_token_ids: list[TokenId] = []
    """Tokens of the prompt. Reward models score these, and not the text; functions do not need them."""
    completion_token_ids: list[TokenId] = []
    """Tokens of the completion."""
    columns: dict[str, JsonValue] = {}
    """The dataset's other columns, handed to reward functions by name."""


class ScoreBatchRequest(Message):
    """Completions to score."""

    items: list[ScoreRequest] = Field(min_length=1, max_length=MAX_ITEMS)
    """The completions; they may be scored together with those of other requests."""


class ScoreResponse(Message):
    """The score of a completion."""

    score: FiniteFloat


class ScoreBatchResponse(Message):
    """A score for each completion, in their order."""

    scores: list[FiniteFloat]


class HealthResponse(Message):
    """The server's state."""

    reward: str
    """Name of the reward that it serves."""
    waiting: int
    """Completions that wait or are being scored."""


class Problem(Message):
    """Why there is no score."""

    error: str


def request_of(completion: Completion) -> ScoreRequest:
    """A completion as it is sent. Raises pydantic's `ValidationError` for what JSON cannot hold."""
    tokens = completion.token_ids_T.tolist()
    return ScoreRequest(
        prompt=completion.prompt.text,
        completion=completion.text,
        prompt_token_ids=tokens[: completion.num_prompt_tokens],
        completion_token_ids=tokens[completion.num_prompt_tokens :],
        columns=dict(completion.prompt.columns),
    )


def completion_of(request: ScoreRequest) -> Completion:
    """A completion as rewards take it. Log-probs are NaN and the version is 0: no reward may look at them."""
    prompt_ids = np.asarray(request.prompt_token_ids, dtype=np.int32)
    token_ids_T = np.concatenate([prompt_ids, np.asarray(request.completion_token_ids, dtype=np.int32)])
    return Completion(
        request_id="",
        prompt=Prompt(prompt_id="", text=request.prompt, token_ids=prompt_ids, columns=request.columns),
        token_ids_T=token_ids_T,
        sampled_T=np.arange(len(token_ids_T)) >= len(prompt_ids),
        behavior_logprobs_T=np.full(len(token_ids_T), np.nan, dtype=np.float32),
        version_spans=(VersionSpan(policy_version=0, start=0, stop=len(request.completion_token_ids)),),
        text=request.completion,
        truncated=False,
    )
