"""Under ZeRO-3 no rank ever holds the whole model, and what it loads is the same."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.learner.ranks import facts, run_ranks
from tests.tiny_models import build_tiny_model

pytestmark = pytest.mark.real

NUM_BYTES = 4 * 29_368_832
"""Of the large model in float32."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 117 MB, saved in bfloat16 so that loading it makes a copy; and one whose config is another's."""
    folder = tmp_path_factory.mktemp("loading")
    build_tiny_model(folder / "policy")
    torch.manual_seed(0)
    large = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=512,
            intermediate_size=1536,
            num_hidden_layers=8,
            num_attention_heads=8,
            vocab_size=4096,
            tie_word_embeddings=True,
        )
    )
    assert 4 * large.num_parameters() == NUM_BYTES
    large.bfloat16().save_pretrained(folder / "large")
    large.save_pretrained(folder / "wrong")
    config = json.loads((folder / "wrong" / "config.json").read_text(encoding="utf-8"))
    (folder / "wrong" / "config.json").write_text(json.dumps(config | {"intermediate_size": 1024}))
    run_ranks(
        folder,
        2,
        ("load-0", "load-3", "refuse"),
        module="tests.learner.loading_rank",
        environment={"MALLOC_MMAP_THRESHOLD_": "262144"},  # what is freed leaves the process, as on a GPU
    )
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_the_same_weights_and_logprobs(results: Path, rank: int) -> None:
    whole, sharded = facts(results, "load-0-world2", rank), facts(results, "load-3-world2", rank)
    assert sharded["sums"] == whole["sums"]
    assert sharded["logprobs"] == pytest.approx(whole["logprobs"], abs=1e-6)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_never_holds_the_whole_model(results: Path, rank: int) -> None:
    whole = facts(results, "load-0-world2", rank)["peak_bytes"]
    sharded = facts(results, "load-3-world2", rank)["peak_bytes"]
    assert whole > 0.95 * NUM_BYTES
    assert sharded < 0.75 * NUM_BYTES


@pytest.mark.parametrize("rank", [0, 1])
def test_what_rank_0_finds_wrong_with_the_weights_every_rank_says(results: Path, rank: int) -> None:
    assert "learner rank 0" in facts(results, "refuse-world2", rank)["said"]
