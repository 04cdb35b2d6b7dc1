"""The level of a reward model: what it gives, on average, to texts of the untrained policy.

Scores are only learned up to a constant. Taking this one off makes them mean 0 where training starts, so that
several rewards can be weighed against each other (InstructGPT, arXiv:2203.02155, sec. 3.5, shifts its reward
model by a bias before RL).

Dimension key: B prompts, T token positions, padded on the left, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from core.decoded_logits import decoded_logits
from core.decoding import UNCHANGED, Decoding
from core.messages import Int32s
from core.models import ScalarModel
from core.packing import pack_row, plan_rows
from core.pretrained import load_network, load_tokenizer
from core.scored_text import scored_text, special_token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the untrained policy is sampled: as rollout workers do it, or the level is not that of their texts."""

    max_new_tokens: int
    decoding: Decoding = UNCHANGED
    is_greedy: bool = False
    stop: Sequence[str] = ()
    """Texts that end a completion, which keeps them."""


@torch.inference_mode()
def mean_score_of_samples(
    reward_model: ScalarModel,
    policy_path: Path,
    prompts: Sequence[Int32s],
    *,
    sampling: Sampling,
    token_budget: int,
    seed: int,
) -> float:
    """One sample of each prompt, scored as rewards are; the mean."""
    policy = load_network(AutoModelForCausalLM, policy_path, dtype=torch.float32).eval()
    ends = np.atleast_1d(policy.config.eos_token_id).tolist()  # some models have several
    longest = max(len(prompt) for prompt in prompts)
    token_ids_BT = torch.full((len(prompts), longest), ends[0])
    mask_BT = torch.zeros_like(token_ids_BT)
    for line, prompt in enumerate(prompts):
        token_ids_BT[line, longest - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.int64)
        mask_BT[line, longest - len(prompt) :] = 1
    policy.generation_config = GenerationConfig()  # its own would fill in what is left out here
    config = GenerationConfig(
        do_sample=not sampling.is_greedy,
        top_k=0,  # or else 50
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sampled_BT = policy.generate(
            token_ids_BT,
            attention_mask=mask_BT,
            generation_config=config,
            logits_processor=LogitsProcessorList([_decoded(sampling.decoding)]),
            stopping_criteria=_stopped(sampling.stop, policy_path, longest),
        )
    special_ids = special_token_ids(policy_path)
    texts = []
    for prompt, line in zip(prompts, sampled_BT, strict=True):
        completion = _up_to_end(line[longest:].numpy().astype(np.int32), ends)
        texts.append(scored_text(np.concatenate([prompt, completion]), len(prompt), special_ids))
    total = 0.0
    for members in plan_rows([len(text) for text in texts], token_budget):
        row = pack_row([(texts[member], np.zeros(len(texts[member]), dtype=bool)) for member in members])
        total += float(reward_model.final_scores(row).double().sum())
    return total / len(texts)


def _decoded(decoding: Decoding) -> Any:
    """What rollout workers do to logits, at each place."""
    return lambda token_ids_BT, logits_BV: decoded_logits(logits_BV, logits_BV.argmax(1), decoding)


def _stopped(stop: Sequence[str], policy_path: Path, start: int) -> Any:
    """Which completions hold a text that ends them."""
    if not stop:
        return None
    tokenizer = load_tokenizer(policy_path)

    def is_stopped_B(token_ids_BT: torch.Tensor, _: Any, **options: Any) -> torch.Tensor:
        texts = tokenizer.batch_decode(token_ids_BT[:, start:], skip_special_tokens=True)
        return torch.tensor([any(end in text for end in stop) for text in texts], dtype=torch.bool)

    return StoppingCriteriaList([is_stopped_B])


def _up_to_end(token_ids: Int32s, ends: list[int]) -> Int32s:
    """The tokens to the first end of text, itself included: what a rollout worker gives."""
    places = np.flatnonzero(np.isin(token_ids, ends))
    return token_ids[: places[0] + 1] if len(places) else token_ids
