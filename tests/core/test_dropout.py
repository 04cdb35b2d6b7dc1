"""The dropout of networks of several architectures, each of which calls it otherwise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig

from core.dropout import set_attention_dropout
from core.errors import UserError
from core.models import TokenLogprobs, load_policy
from core.packing import pack_row
from tests.core.networks import SIZES, save_network

RATES = ("attention_dropout", "hidden_dropout", "dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop")
ROW = pack_row([(np.arange(2, 14, dtype=np.int32), np.arange(12) > 0)])


def policy_with_dropout(folder: Path, config_class: type[Any]) -> TokenLogprobs:
    known = {name: 0.5 for name in RATES if hasattr(config_class(), name)}
    assert known
    save_network(folder, config_class(**SIZES, **known))
    return load_policy(folder, "float32").train()


@pytest.mark.parametrize("config_class", [LlamaConfig, GPT2Config, GPTNeoXConfig, OPTConfig])
@torch.no_grad()
def test_a_policy_that_learns_is_the_one_that_sampled_whatever_its_config_drops(
    tmp_path: Path, config_class: type[Any]
) -> None:
    policy = policy_with_dropout(tmp_path, config_class)
    learning = policy(ROW)
    assert torch.equal(learning, policy.eval()(ROW))


@torch.no_grad()
def test_dropout_that_was_set_drops_in_train_mode_alone(tmp_path: Path) -> None:
    policy = policy_with_dropout(tmp_path, LlamaConfig)
    set_attention_dropout(policy, 0.5)
    assert not torch.equal(policy(ROW), policy(ROW))
    assert torch.equal(policy.eval()(ROW), policy(ROW))


def test_an_attention_that_cannot_be_told_to_drop_is_refused(tmp_path: Path) -> None:
    policy = policy_with_dropout(tmp_path, OPTConfig)
    with pytest.raises(
        UserError, match="learner.dropout = 0.1: the attention of this architecture has no rate"
    ):
        set_attention_dropout(policy, 0.1)
