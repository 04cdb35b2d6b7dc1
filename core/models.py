"""The networks, as modules over packed rows: a policy with token log-probs, a backbone with a scalar head.

Dimension key: T token positions of a row, N trained tokens of a row, S sequences of a row, V vocabulary.
"""

import hashlib
import json
from collections.abc import Set
from pathlib import Path
from typing import Any

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
from core.errors import UserError
from core.packing import PackedRow
from core.pretrained import load_network, read_config, read_tokenizer_file

HEAD_WEIGHT = "score.weight"
"""Name of a scalar head in transformers' sequence classifiers."""
SCORE_OFFSET = "leash_score_offset"
"""Key of a reward model's config.json: what is taken off its scores (`learner/reward_normalization.py`)."""


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
    """A causal language model, in train mode off, with packed attention. Raises `UserError`."""
    return TokenLogprobs(_load(AutoModelForCausalLM, path, dtype))


def load_scalar_model(path: Path, dtype: str) -> ScalarModel:
    """A sequence classifier with one output. Raises `UserError` for anything else."""
    config = read_config(path)
    if config.num_labels != 1 or not any("SequenceClassification" in a for a in config.architectures or []):
        raise UserError(
            f"{path}: this is a {config.architectures} with {config.num_labels} outputs, not a reward model. "
            "Give a folder that `leash reward` wrote, or any sequence classifier with one output."
        )
    return ScalarModel(_load(AutoModelForSequenceClassification, path, dtype))


def load_with_scalar_head(path: Path, dtype: str) -> ScalarModel:
    """A causal language model's backbone with a new scalar head that gives 0. Raises `UserError`."""
    config = read_config(path)
    config.num_labels = 1
    new, left_over = {HEAD_WEIGHT}, {"lm_head.weight", "lm_head.bias"}
    model = _load(AutoModelForSequenceClassification, path, dtype, config=config, expected=new | left_over)
    head: Any = model.score
    with torch.no_grad():
        head.weight.zero_()
        if hasattr(head.weight, "ds_tensor"):  # this rank's part, where ZeRO-3 has split it while loading
            head.weight.ds_tensor.zero_()
    return ScalarModel(model)


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
    return loaded
