"""A sampler whose engine is cut in two, each half in a process of its own: it samples as one does."""

from pathlib import Path

import pytest

from actors.config import RolloutConfig
from actors.engine_options import engine_environment
from core.config import ModelConfig
from tests.actors.test_sampler_real import (
    MAX_GAP,
    MAX_MODEL_LEN,
    MAX_NEW_TOKENS,
    Learner,
    largest_gap,
    requests,
    sample,
)

pytestmark = pytest.mark.real


def test_both_halves_take_every_push(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = RolloutConfig(
        max_new_tokens=MAX_NEW_TOKENS, max_concurrent_sequences=16, tensor_parallel=2, kv_cache_gib=1
    )
    for name, value in engine_environment(rollout).items():
        monkeypatch.setenv(name, value)
    from actors.sampler import Sampler  # vLLM: ten seconds, and it reads the environment

    sampler = Sampler(tiny_model, ModelConfig(path=str(tiny_model), max_model_len=MAX_MODEL_LEN), rollout)
    learner = Learner(tiny_model, tmp_path)
    learner.change()
    assert sampler.pull_weights(learner.manifest()).probe_gap < MAX_GAP
    completions = sample(sampler, requests([5, 40, 200]))
    assert [len(completion.token_ids_T) for completion in completions] == [21, 56, 216]
    assert largest_gap(learner, completions) < MAX_GAP
    learner.change()
    assert largest_gap(learner, completions) > 0.1, "another policy"
    assert sampler.pull_weights(learner.manifest()).probe_gap < MAX_GAP
    assert largest_gap(learner, sample(sampler, requests([5, 40, 200]))) < MAX_GAP
