"""Models and data that the tests on the real stack share, made once a session."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer policy with SmolLM2's tokenizer."""
    from tests.tiny_models import build_tiny_model  # torch: heavy, and only tests on the real stack need it

    return build_tiny_model(tmp_path_factory.mktemp("models") / "policy")


@pytest.fixture(scope="session")
def tiny_reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer reward model with the same tokenizer."""
    from tests.tiny_models import build_tiny_scalar_model  # torch, as above

    return build_tiny_scalar_model(tmp_path_factory.mktemp("models") / "reward")


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSON-lines file of 40 short prompts."""
    subjects = (
        "The film",
        "A story",
        "Her voice",
        "This plot",
        "The ending",
        "His debut",
        "Every scene",
        "It",
    )
    verbs = ("is", "seems", "was never", "could be", "has always been")
    rows = [{"prompt": f"{subject} {verb}"} for subject in subjects for verb in verbs]
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
