"""The networks, as modules over packed rows: a policy with token log-probs, a backbone with a scalar head.

Dimension key: T token positions of a row, N trained tokens of a row, S sequences of a row, V vocabulary.
"""

import hashlib
import json
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from core.attention import PACKED_ATTENTION
from core.decoded_logits import decoded_logits
from core.decoding import UNCHANGED, Decoding
from core.dropout import switch_off_dropout
from core.errors import UserError
from core.packing import PackedRow, pack_row
from core.pretrained import load_network, read_config, read_tokenizer_file

HEAD_WEIGHT = "score.weight"
"""Name of a scalar head in transformers' sequence classifiers."""
SCORE_OFFSET = "leash_score_offset"
"""Key of a reward model's config.json: what is taken off its scores (`learner/reward_normalization.py`)."""
CHECKED_LENGTHS = (5, 9)
"""Tokens of the sequences on which a loaded network is compared with transformers' own forward pass."""
LARGEST_GAPS = {"float32": 1e-3, "bfloat16": 0.3}
"""By dtype, the mean difference that rounding may make, in nats or score (SmolLM2-135M: 3e-6 and 0.06)."""


class TokenLogprobs(nn.Module):
    """A causal language model that gives the log-probability of each trained token."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, row: PackedRow, decoding: Decoding = UNCHANGED, *, logits: bool = False
    ) -> torch.Tensor:
        """[N] float32, nats, of the distribution that `decoding` samples from; with `logits` its [N, V] logits.

        Logits are computed where a trained token is predicted and nowhere else.
        """
        logits_NV = self.model.get_output_embeddings()(hidden_states(self.model, row)[row.predicting_N])
        logits_NV = decoded_logits(logits_NV.float(), row.target_ids_N, decoding)
        return logits_NV if logits else logprobs_of(logits_NV, row.target_ids_N)


class ScalarModel(nn.Module):
    """A backbone with a scalar head: the reward model, and the value model that starts from it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, row: PackedRow) -> torch.Tensor:
        """[N] float32: the value before each trained token, from the hidden state that predicts it."""
        return self._scores(row, row.predicting_N)

    def final_scores(self, row: PackedRow) -> torch.Tensor:
        """[S] float32: the score at the last token of each sequence."""
        return self._scores(row, row.last_S)

    def _scores(self, row: PackedRow, positions: torch.Tensor) -> torch.Tensor:
        head = self.model.score
        assert isinstance(head, nn.Module)
        scores: torch.Tensor = head(hidden_states(self.model, row)[positions]).float()
        return scores[:, 0] - getattr(self.model.config, SCORE_OFFSET, 0.0)


def hidden_states(model: PreTrainedModel, row: PackedRow) -> torch.Tensor:
    """[T, hidden] after the final norm: what a head sees."""
    output = model.base_model(
        input_ids=row.token_ids_T[None],
        position_ids=row.position_ids_T[None],
        use_cache=False,
        packing=row.attention,
    )
    hidden_TF: torch.Tensor = output.last_hidden_state[0]
    return hidden_TF


def logprobs_of(logits_NV: torch.Tensor, token_ids_N: torch.Tensor) -> torch.Tensor:
    """[N] float32, nats: the log-probability of each token under its logits."""
    return -F.cross_entropy(logits_NV, token_ids_N, reduction="none")


def load_policy(path: Path, dtype: str) -> TokenLogprobs:
    """A causal language model, in train mode off, with packed attention. Raises `UserError`, also where packing
    gives other log-probs than transformers' own forward pass."""
    policy = TokenLogprobs(_load(AutoModelForCausalLM, path, dtype))
    _check_packed(policy, path, dtype)
    return policy


def load_scalar_model(path: Path, dtype: str) -> ScalarModel:
    """A sequence classifier with one output. Raises `UserError` for anything else, and where packing gives other
    scores than transformers' own forward pass."""
    config = read_config(path)
    if config.num_labels != 1 or not any("SequenceClassification" in a for a in config.architectures or []):
        raise UserError(
            f"{path}: this is a {config.architectures} with {config.num_labels} outputs, not a reward model. "
            "Give a folder that `leash reward` wrote, or any sequence classifier with one output."
        )
    model = ScalarModel(_load(AutoModelForSequenceClassification, path, dtype))
    _check_packed(model, path, dtype)
    return model


def load_with_scalar_head(path: Path, dtype: str) -> ScalarModel:
    """A causal language model's backbone with a new scalar head that gives 0. Raises `UserError`."""
    config = read_config(path)
    config.num_labels = 1
    new, left_over = {HEAD_WEIGHT}, {"lm_head.weight", "lm_head.bias"}
    model = _load(AutoModelForSequenceClassification, path, dtype, config=config, expected=new | left_over)
    value_model = ScalarModel(model)
    _check_packed(value_model, path, dtype)  # while the head is random: with zeros any backbone would do
    head: Any = model.score
    with torch.no_grad():
        head.weight.zero_()
        if hasattr(head.weight, "ds_tensor"):  # this rank's part, where ZeRO-3 has split it while loading
            head.weight.ds_tensor.zero_()
    return value_model


def linear_layers(path: Path) -> list[str]:
    """Last names of all linear layers of a causal language model but its head: those that adapters lie beside."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(read_config(path), trust_remote_code=False)
    head = model.get_output_embeddings()
    named = model.named_modules()
    return sorted(
        {name.rpartition(".")[2] for name, m in named if isinstance(m, nn.Linear) and m is not head}
    )


def check_same_tokenizer(path: Path, other: Path) -> None:
    """Token ids flow between the networks as they are, so their tokenizers must agree. Raises `UserError`."""
    if tokenizer_digest(path) != tokenizer_digest(other):
        raise UserError(
            f"{other}: its tokenizer is not the one of {path}. Rollouts are scored by token ids, so the reward "
            "model must share the policy's tokenizer: train it from the same base model."
        )


def tokenizer_digest(path: Path) -> str:
    """Digest of the mapping from text to ids: the vocabulary and the merges, not the chat template."""
    content = read_tokenizer_file(path)
    relevant = {key: content.get(key) for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def _load(
    kind: type,
    path: Path,
    dtype: str,
    *,
    config: PreTrainedConfig | None = None,
    expected: Set[str] = frozenset(),
) -> PreTrainedModel:
    """Load weights, refusing a checkpoint that does not fill the architecture exactly, but for `expected` names."""
    read_config(path)
    own_config: dict[str, Any] = {} if config is None else {"config": config}
    model, report = load_network(
        kind,
        path,
        **own_config,
        dtype=getattr(torch, dtype),
        attn_implementation=PACKED_ATTENTION,
        output_loading_info=True,
    )
    problems = {
        key: sorted(unexpected)[:3]
        for key, names in report.items()
        if key != "error_msgs" and (unexpected := set(names) - expected)
    }
    if problems:
        raise UserError(
            f"{path}: the checkpoint is of another architecture than its config.json says: {problems}. "
            "Save both together with `save_pretrained`."
        )
    loaded: PreTrainedModel = model
    switch_off_dropout(loaded)
    return loaded


@torch.no_grad()
def _check_packed(module: TokenLogprobs | ScalarModel, path: Path, dtype: str) -> None:
    """Two short sequences in one row must give what each gives alone in transformers' own forward pass.

    Left out where ZeRO-3 has split the weights while loading, as no rank may hold all of them: there the reference
    and the reward model, which are loaded whole, are checked, and the learner relies on `check_model`.
    Raises `UserError`.
    """
    model = module.model
    if any(hasattr(parameter, "ds_tensor") for parameter in model.parameters()):
        return
    random = np.random.default_rng(0)
    config = model.config.get_text_config()
    sequences = [
        random.integers(config.vocab_size, size=length, dtype=np.int32) for length in CHECKED_LENGTHS
    ]
    for ids in sequences:
        if ids[-1] == config.pad_token_id:  # transformers scores the last token that is not padding
            ids[-1] = (ids[-1] + 1) % config.vocab_size
    row = pack_row([(ids, np.arange(len(ids)) > 0) for ids in sequences])
    try:
        packed = module.final_scores(row) if isinstance(module, ScalarModel) else module(row)
        model.set_attn_implementation("eager")  # the one that all have, and that leaves nothing out
        alone = torch.cat([_unpacked(module, torch.from_numpy(ids).long()) for ids in sequences])
        model.set_attn_implementation(PACKED_ATTENTION)
    except Exception as error:  # whatever an architecture makes of arguments that it does not know
        raise _not_packable(path, model, f"does not run on packed rows ({error})") from error
    limit = LARGEST_GAPS[dtype]
    if isinstance(module, ScalarModel):
        limit *= max(1.0, float(alone.abs().max()))  # rounding is relative, and scores have any scale
    gap = float((packed - alone).abs().mean())
    if not gap <= limit:
        raise _not_packable(
            path,
            model,
            f"gives other {'scores' if isinstance(module, ScalarModel) else 'log-probs'} on packed rows than in "
            f"transformers' own forward pass, {gap:.2g} apart in the mean (limit {limit:.1g})",
        )


def _unpacked(module: TokenLogprobs | ScalarModel, token_ids_T: torch.Tensor) -> torch.Tensor:
    """What the module would give for one sequence, all of it trained, by transformers' own forward pass."""
    whole = torch.ones_like(token_ids_T)[None]
    output = module.model(input_ids=token_ids_T[None], attention_mask=whole, use_cache=False)
    logits: torch.Tensor = output.logits[0].float()
    if isinstance(module, ScalarModel):
        return logits - getattr(module.model.config, SCORE_OFFSET, 0.0)
    return logprobs_of(logits[:-1], token_ids_T[1:])


def _not_packable(path: Path, model: PreTrainedModel, problem: str) -> UserError:
    return UserError(
        f"{path}: model type {model.config.model_type} {problem}. Use another architecture, such as Llama, "
        "Qwen2 or Qwen3."
    )
