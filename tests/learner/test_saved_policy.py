"""A saved model laid out for a push, as the engines find it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from core.errors import UserError
from core.weights import digest, map_buffer, view_tensors
from learner.saved_policy import SavedPolicy
from tests.fakes import int32s, save_tiny_tokenizer
from tests.tiny_models import build_tiny_model

PROBE = int32s(3, 14, 15, 9, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = build_tiny_model(tmp_path / "model", vocabulary=50)
    save_tiny_tokenizer(folder, "good", "bad")
    return folder


def test_every_tensor_lies_in_shared_memory_with_its_digest_and_the_probe_is_the_models_own(
    folder: Path,
) -> None:
    policy = SavedPolicy(folder, base=folder, dtype="float32", node="here")
    try:
        manifest = policy.pack(PROBE, max_probe_gap=1e-3)
        laid_out = dict(view_tensors(map_buffer(manifest.path, manifest.num_bytes), manifest.tensors))
        model = AutoModelForCausalLM.from_pretrained(folder)
        wanted = dict(model.named_parameters())
        assert laid_out.keys() == wanted.keys(), "the tied head is there once"
        assert all(torch.equal(laid_out[name], wanted[name]) for name in wanted)
        assert {entry.name: entry.digest for entry in manifest.tensors} == {
            name: digest(parameter) for name, parameter in wanted.items()
        }
        with torch.no_grad():
            logits = model(torch.tensor(PROBE[None].astype(np.int64))).logits[0].log_softmax(-1)
        expected = [0.0, *(float(logits[i, token]) for i, token in enumerate(PROBE[1:]))]
        assert manifest.probe_logprobs_T.tolist() == pytest.approx(expected, abs=1e-5)
        assert (manifest.policy_version, manifest.node) == (0, "here")
    finally:
        policy.close()
    assert not Path(manifest.path).exists()


def test_another_tokenizer_than_the_bases_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_tiny_tokenizer(other, "good", "bad", "worse")
    with pytest.raises(UserError, match="its tokenizer is not the one of"):
        SavedPolicy(other, base=folder, dtype="float32", node="here")
