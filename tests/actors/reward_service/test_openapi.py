"""The server against its own OpenAPI document: it takes what the schema allows and refuses the rest."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.reward_service.openapi import OPEN_PATHS, openapi_document
from tests.actors.reward_service.served import Served, lengths, serving

DOCUMENT = openapi_document("length")
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
ANY_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False).filter(
        lambda number: not number.is_integer()  # JSON Schema calls 1.0 an integer, and the server does not
    )
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(lengths) as served:
        yield served


def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def values_of(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Everything that a schema allows, of the words that ours use; an unknown word is an error here."""
    words = dict(schema)
    for word in ("title", "description", "default"):
        words.pop(word, None)
    if "$ref" in words:
        return (
            ANY_JSON
            if words["$ref"].endswith("/JsonValue")
            else values_of(SCHEMAS[words["$ref"].split("/")[-1]])
        )
    match words.pop("type", None):
        case "string":
            assert not words
            return st.text(max_size=20)
        case "integer":
            low, high = words.pop("minimum"), words.pop("exclusiveMaximum")
            assert not words
            return st.integers(low, high - 1)
        case "array":
            inner, low, high = words.pop("items"), words.pop("minItems", 0), words.pop("maxItems", 4)
            assert not words
            return st.lists(values_of(inner), min_size=low, max_size=min(high, low + 3))
        case "object" if "properties" in words:
            properties, required = words.pop("properties"), words.pop("required", [])
            assert words == {"additionalProperties": False}
            fields = {name: values_of(inner) for name, inner in properties.items()}
            optional = {name: field for name, field in fields.items() if name not in required}
            return st.fixed_dictionaries({name: fields[name] for name in required}, optional=optional)
        case "object":
            inner = words.pop("additionalProperties")
            assert not words
            return st.dictionaries(st.text(max_size=8), values_of(inner), max_size=3)
        case None:
            assert not words
            return ANY_JSON
    raise AssertionError(f"a schema with {schema}")


def broken(value: Any) -> st.SearchStrategy[Any]:
    """The value with one thing in it replaced, taken away or added."""
    places = [()]

    def visit(inner: Any, path: tuple[Any, ...]) -> None:
        for key, item in inner.items() if isinstance(inner, dict) else enumerate(inner):
            places.append((*path, key))
            if isinstance(item, dict | list):
                visit(item, (*path, key))

    visit(value, ())

    def change(path: tuple[Any, ...], what: str, replacement: Any) -> Any:
        copy = json.loads(json.dumps(value))
        if not path:
            return replacement
        inner = copy
        for key in path[:-1]:
            inner = inner[key]
        if what == "remove":
            del inner[path[-1]]
        elif what == "add" and isinstance(inner, dict):
            inner["added"] = replacement
        else:
            inner[path[-1]] = replacement
        return copy

    return st.builds(change, st.sampled_from(places), st.sampled_from(["remove", "add", "replace"]), ANY_JSON)


def body_schema(path: str) -> dict[str, Any]:
    schema: dict[str, Any] = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    return schema


def check_answer(path: str, method: str, code: int, answer: Any) -> None:
    responses = DOCUMENT["paths"][path][method]["responses"]
    validator(responses[str(code)]["content"]["application/json"]["schema"]).validate(answer)


def test_the_document_is_sound_and_names_every_route(served: Served) -> None:
    assert served.ask("GET", "/openapi.json")[1] == json.loads(json.dumps(DOCUMENT))
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            assert served.ask(method.upper(), path, token=None)[0] == (200 if path in OPEN_PATHS else 401)
            assert (operation.get("security") == []) == (path in OPEN_PATHS)
    check_answer("/health", "get", *served.ask("GET", "/health")[:2])
    check_answer("/health", "get", *served.ask("GET", "/health", token="x")[:2])
    check_answer("/score", "post", *served.ask("POST", "/score", token="x")[:2])


@pytest.mark.parametrize("path", ["/score", "/score_batch"])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_the_schema_allows_is_scored(served: Served, path: str, data: st.DataObject) -> None:
    body = data.draw(values_of(body_schema(path)))
    validator(body_schema(path)).validate(body)
    code, answer, _ = served.ask("POST", path, body)
    assert code == 200
    check_answer(path, "post", code, answer)
    items = body.get("items", [body])
    scores = answer["scores"] if "scores" in answer else [answer["score"]]
    assert scores == [len(item["completion"]) for item in items]


@pytest.mark.parametrize("path", ["/score", "/score_batch"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_server_and_schema_agree_on_what_is_almost_right(
    served: Served, path: str, data: st.DataObject
) -> None:
    body = data.draw(broken(data.draw(values_of(body_schema(path)))))
    allowed = validator(body_schema(path)).is_valid(body)
    code, answer, _ = served.ask("POST", path, body)
    assert code == (200 if allowed else 422), answer
    check_answer(path, "post", code, answer)
