"""Networks over packed rows, against the same networks on one sequence at a time, without padding."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from core.decoding import Decoding
from core.errors import UserError
from core.messages import Bools, Int32s
from core.models import (
    ScalarModel,
    TokenLogprobs,
    check_same_tokenizer,
    load_policy,
    load_scalar_model,
    load_with_scalar_head,
)
from core.packing import pack_row
from tests.fakes import save_tiny_tokenizer

VOCABULARY = 50
HEAVY_TAILED = (2, 3, 2, 5, 3, 90, 2, 9, 17, 3)
"""Most sequences short, one long: three buckets of attention and a half-filled one."""

Sequences = list[tuple[Int32s, Bools]]


def tiny_config(**changes: Any) -> LlamaConfig:
    """Four query heads on two key-value heads, tied embeddings, and weights large enough to matter."""
    return LlamaConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "initializer_range": 0.2,
            "pad_token_id": 0,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scalar_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scalar")
    torch.manual_seed(1)
    LlamaForSequenceClassification(tiny_config(num_labels=1)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> TokenLogprobs:
    return load_policy(policy_folder, "float32")


@pytest.fixture(scope="module")
def unpacked(policy_folder: Path) -> LlamaForCausalLM:
    """The same weights under transformers' own attention."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(
        policy_folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model


def make_sequences(lengths: tuple[int, ...], seed: int = 0) -> Sequences:
    """Random tokens; about half are trained on, the last always and the first never."""
    random = np.random.default_rng(seed)
    sequences = []
    for length in lengths:
        mask = random.random(length) < 0.5
        mask[0], mask[-1] = False, True
        sequences.append((random.integers(0, VOCABULARY, length).astype(np.int32), mask))
    return sequences


def one_by_one(model: LlamaForCausalLM, sequences: Sequences, temperature: float = 1.0) -> torch.Tensor:
    """[N]: log-probs of the trained tokens, each sequence forwarded alone."""
    parts = []
    for ids, mask in sequences:
        tokens = torch.from_numpy(ids.astype(np.int64))
        logits = model(input_ids=tokens[None]).logits[0].float() / temperature
        logprobs = torch.log_softmax(logits, -1)[:-1].gather(1, tokens[1:, None])[:, 0]
        parts.append(logprobs[torch.from_numpy(mask[1:])])
    return torch.cat(parts)


@pytest.mark.parametrize("lengths", [(2,), (7, 7, 7), (40, 2, 20, 3), HEAVY_TAILED], ids=str)
@torch.no_grad()
def test_packed_logprobs_are_those_of_each_sequence_alone(
    policy: TokenLogprobs, unpacked: LlamaForCausalLM, lengths: tuple[int, ...]
) -> None:
    sequences = make_sequences(lengths)
    packed = policy(pack_row(sequences))
    alone = one_by_one(unpacked, sequences)
    assert packed.dtype == torch.float32
    assert torch.allclose(packed, alone, rtol=0, atol=1e-5)
    if len(alone) > 10:
        assert alone.std() > 0.5  # a model that finds all tokens alike would prove nothing


@torch.no_grad()
def test_a_neighbour_changes_nothing(policy: TokenLogprobs) -> None:
    first, second, third = make_sequences((30, 6, 30))
    other = make_sequences((30,), seed=9)[0]
    row, changed = pack_row([first, second, third]), pack_row([other, second, other])
    before, count = row.trained_lengths[0], row.trained_lengths[1]
    before_changed = changed.trained_lengths[0]
    assert torch.allclose(
        policy(row)[before : before + count],
        policy(changed)[before_changed : before_changed + count],
        rtol=0,
        atol=1e-5,
    )


@torch.no_grad()
def test_logits_are_divided_by_the_temperature(policy: TokenLogprobs, unpacked: LlamaForCausalLM) -> None:
    sequences = make_sequences((9, 4))
    packed = policy(pack_row(sequences), Decoding(temperature=0.7))
    assert torch.allclose(packed, one_by_one(unpacked, sequences, 0.7), rtol=0, atol=1e-5)
    assert not torch.allclose(packed, policy(pack_row(sequences)), atol=1e-2)


def test_the_gradient_of_a_row_is_the_sum_of_its_sequences(
    policy: TokenLogprobs, unpacked: LlamaForCausalLM
) -> None:
    sequences = make_sequences(HEAVY_TAILED)
    weights = torch.randn(
        sum(int(mask.sum()) for _, mask in sequences), generator=torch.Generator().manual_seed(0)
    )
    policy.zero_grad()
    (policy(pack_row(sequences)) * weights).sum().backward()
    unpacked.zero_grad()
    for part, of in zip(sequences, weights.split([int(mask.sum()) for _, mask in sequences]), strict=True):
        (one_by_one(unpacked, [part]) * of).sum().backward()
    wanted = dict(unpacked.named_parameters())
    for name, parameter in policy.model.named_parameters():
        alone = wanted[name].grad
        assert parameter.grad is not None, name
        assert alone is not None, name
        scale = alone.abs().max()
        assert scale > 0, name
        assert torch.allclose(parameter.grad, alone, rtol=0, atol=1e-4 * float(scale)), name


@torch.no_grad()
def test_values_stand_before_the_trained_tokens_and_scores_at_the_end(scalar_folder: Path) -> None:
    model = load_scalar_model(scalar_folder, "float32")
    assert isinstance(model, ScalarModel)
    alone: LlamaForSequenceClassification = LlamaForSequenceClassification.from_pretrained(
        scalar_folder, dtype=torch.float32, attn_implementation="eager"
    )
    sequences = make_sequences((5, 20, 2))
    values, scores = [], []
    for ids, mask in sequences:
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        of_positions = alone.score(alone.model(input_ids=tokens).last_hidden_state)[0, :, 0]
        values.append(of_positions[np.flatnonzero(mask) - 1])
        scores.append(of_positions[-1])
    row = pack_row(sequences)
    assert torch.allclose(model(row), torch.cat(values), rtol=0, atol=1e-5)
    assert torch.allclose(model.final_scores(row), torch.stack(scores), rtol=0, atol=1e-5)


def test_weights_come_in_the_type_that_was_asked_for(policy_folder: Path) -> None:
    model = load_policy(policy_folder, "bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(pack_row(make_sequences((4,)))).dtype == torch.float32


def copied(folder: Path, into: Path) -> Path:
    into.mkdir()
    for file in folder.iterdir():
        (into / file.name).write_bytes(file.read_bytes())
    return into


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_the_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["intermediate_size"] = 64
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def drop_a_layer_from_the_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def remove_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def remove_the_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        drop_a_tensor,
        change_the_architecture,
        drop_a_layer_from_the_config,
        truncate,
        remove_the_weights,
        remove_the_config,
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(
    policy_folder: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = copied(policy_folder, tmp_path / "damaged")
    load_policy(folder, "float32")
    damage(folder)
    with pytest.raises(UserError, match="damaged"):
        load_policy(folder, "float32")


def test_a_missing_tensor_is_named(policy_folder: Path, tmp_path: Path) -> None:
    folder = copied(policy_folder, tmp_path / "damaged")
    drop_a_tensor(folder)
    with pytest.raises(UserError, match=r"missing.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_policy(folder, "float32")


def test_a_reward_model_is_no_policy(scalar_folder: Path) -> None:
    with pytest.raises(UserError, match="another architecture"):
        load_policy(scalar_folder, "float32")


def test_a_policy_is_no_reward_model(policy_folder: Path) -> None:
    with pytest.raises(UserError, match="LlamaForCausalLM.*not a reward model"):
        load_scalar_model(policy_folder, "float32")


@pytest.mark.parametrize("tied", [True, False])
def test_a_policys_backbone_with_a_new_head_gives_0_and_learns(tmp_path: Path, tied: bool) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config(tie_word_embeddings=tied)).save_pretrained(tmp_path)
    value_model, policy = load_with_scalar_head(tmp_path, "float32"), load_policy(tmp_path, "float32")
    backbone = dict(policy.model.base_model.named_parameters())
    for name, parameter in value_model.model.base_model.named_parameters():
        torch.testing.assert_close(parameter, backbone[name], rtol=0, atol=0)
    row = pack_row([(np.array([3, 5, 7, 9], dtype=np.int32), np.arange(4) >= 2)])
    values_N = value_model(row)
    assert values_N.tolist() == [0, 0]
    values_N.sum().backward()
    head: Any = value_model.model.score
    assert head.weight.shape == (1, 32)
    assert head.weight.grad.abs().max() > 0


def test_a_new_head_does_not_excuse_a_missing_tensor(policy_folder: Path, tmp_path: Path) -> None:
    folder = copied(policy_folder, tmp_path / "damaged")
    drop_a_tensor(folder)
    with pytest.raises(UserError, match=r"missing.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_with_scalar_head(folder, "float32")


def test_a_classifier_of_many_classes_is_no_reward_model(tmp_path: Path) -> None:
    LlamaForSequenceClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="3 outputs"):
        load_scalar_model(tmp_path, "float32")


def test_tokenizers_are_compared_by_what_maps_text_to_ids(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder, words in zip(folders, (("a", "b"), ("a", "b"), ("b", "a")), strict=True):
        folder.mkdir()
        save_tiny_tokenizer(folder, *words)
    one, same, other = folders
    template = json.loads((same / "tokenizer.json").read_text(encoding="utf-8"))
    template["truncation"] = {
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    (same / "tokenizer.json").write_text(json.dumps(template), encoding="utf-8")
    check_same_tokenizer(one, same)
    with pytest.raises(UserError, match="other: its tokenizer is not the one of .*one"):
        check_same_tokenizer(one, other)
    (other / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json: no such file"):
        check_same_tokenizer(one, other)
