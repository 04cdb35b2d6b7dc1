"""A reward model: completions in, the output of its scalar head for each of them out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from core.config import ModelConfig
from core.messages import Completion
from core.models import check_same_tokenizer, load_scalar_model
from core.packing import pack_row
from core.scored_text import scored_text, special_token_ids


class RewardModel:
    """A scalar reward model, scored at the last token of prompt and completion."""

    def __init__(self, path: Path, model_path: Path, model: ModelConfig, *, device: str) -> None:
        check_same_tokenizer(model_path, path)
        self._device = torch.device(device)
        self._model = load_scalar_model(path, model.dtype).to(self._device).eval()
        self._special_ids = special_token_ids(path)

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return int(self._model.model.config.vocab_size)

    @torch.inference_mode()
    def score(self, completions: Sequence[Completion]) -> list[float]:
        """The head's output at the last token that is text: an end-of-sequence token is not."""
        texts = [
            scored_text(completion.token_ids_T, completion.num_prompt_tokens, self._special_ids)
            for completion in completions
        ]
        row = pack_row([(text, np.zeros(len(text), dtype=bool)) for text in texts])
        return [float(score) for score in self._model.final_scores(row.to(self._device)).cpu()]
