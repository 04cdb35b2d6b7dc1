"""The reference scorer: completions in, token log-probs under the frozen reference out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from core.config import ModelConfig
from core.decoding import Decoding
from core.messages import Completion, Demonstration, Float32s
from core.models import load_policy
from core.packing import pack_row


class ReferenceScorer:
    """The policy as it was before training."""

    def __init__(self, model_path: Path, model: ModelConfig, *, decoding: Decoding, device: str) -> None:
        self._device = torch.device(device)
        self._model = load_policy(model_path, model.dtype).to(self._device).eval()
        self._decoding = decoding.untruncated

    @torch.inference_mode()
    def score(self, completions: Sequence[Completion | Demonstration]) -> list[Float32s]:
        """One [T] array a completion, float32, nats: 0 where the token was not sampled.

        At the sampling temperature, so that the KL compares like with like; but over the whole vocabulary,
        or the reference might find a sampled token impossible.
        """
        row = pack_row([(completion.token_ids_T, completion.sampled_T) for completion in completions])
        logprobs_N = self._model(row.to(self._device), self._decoding).float().cpu().numpy()
        bounds = np.cumsum(row.trained_lengths)[:-1]
        return [
            _scatter(completion, logprobs)
            for completion, logprobs in zip(completions, np.split(logprobs_N, bounds), strict=True)
        ]


def _scatter(completion: Completion | Demonstration, logprobs: Float32s) -> Float32s:
    logprobs_T = np.zeros(len(completion.token_ids_T), dtype=np.float32)
    logprobs_T[completion.sampled_T] = logprobs
    return logprobs_T
