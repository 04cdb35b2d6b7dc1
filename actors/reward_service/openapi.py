"""A reward server's OpenAPI 3.1 document, made of the messages that it checks requests with."""

from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from actors.reward_service.messages import (
    HealthResponse,
    Problem,
    ScoreBatchRequest,
    ScoreBatchResponse,
    ScoreRequest,
    ScoreResponse,
)

OPEN_PATHS = {"/health", "/openapi.json"}
"""That need no token."""

_MESSAGES = (ScoreRequest, ScoreBatchRequest, ScoreResponse, ScoreBatchResponse, HealthResponse, Problem)
_PROBLEMS = {
    "401": "no token, or a wrong one",
    "413": "the body is too long",
    "422": "the body is not what the schema says, or the reward cannot take it",
    "429": "too much waits already; try again after Retry-After seconds",
    "500": "the reward raised, or returned no finite number",
    "503": "the reward's process died and is started again; try again after Retry-After seconds",
    "504": "no score before the server's deadline; try again after Retry-After seconds",
}


def openapi_document(reward: str) -> dict[str, Any]:
    """The whole document, for a server of this reward."""
    schemas = models_json_schema(
        [(message, "validation") for message in _MESSAGES], ref_template="#/components/schemas/{model}"
    )[1]["$defs"]
    health = {
        "200": _content("It serves.", HealthResponse),
        "401": _content("a wrong token; none is needed", Problem),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Leash reward {reward}", "version": version("leash")},
        "paths": {
            "/score": {"post": _operation("Score a completion", ScoreRequest, ScoreResponse)},
            "/score_batch": {"post": _operation("Score completions", ScoreBatchRequest, ScoreBatchResponse)},
            "/health": {"get": {"summary": "Whom one speaks to", "security": [], "responses": health}},
            "/openapi.json": {
                "get": {
                    "summary": "This document",
                    "security": [],
                    "responses": {"200": {"description": "OpenAPI 3.1."}},
                }
            },
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _operation(summary: str, request: type[BaseModel], response: type[BaseModel]) -> dict[str, Any]:
    return {
        "summary": summary,
        "requestBody": {"required": True, **_content(None, request)},
        "responses": {
            "200": _content("Scored.", response),
            **{code: _content(why, Problem) for code, why in _PROBLEMS.items()},
        },
    }


def _content(description: str | None, message: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{message.__name__}"}
    described = {"description": description} if description else {}
    return {**described, "content": {"application/json": {"schema": schema}}}
