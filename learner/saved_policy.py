"""A saved model in the learner's place: its weights, laid out and vouched for as a learner's are, for a push.

Without DeepSpeed, and without anything that could change them.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from core.messages import Int32s
from core.models import TokenLogprobs, check_same_tokenizer, load_policy
from core.packing import pack_row
from core.weights import WeightManifest, digest, laid_out, make_buffer, new_buffer_path, view_tensors


class SavedPolicy:
    """One buffer in shared memory, written once.

    policy = SavedPolicy(folder, base=..., dtype=..., node=...)
    manifest = policy.pack(probe_token_ids_T, max_probe_gap=1e-3)
    policy.close()
    """

    def __init__(self, folder: Path, *, base: Path, dtype: str, node: str) -> None:
        """`base`: what the engines were started with, whose weights these replace; `node`: Ray's id of the node of
        this process. Raises `UserError` for another tokenizer than the base's."""
        check_same_tokenizer(base, folder)
        self._folder = folder
        self._dtype = dtype
        self._node = node
        self._path = new_buffer_path()

    @torch.no_grad()
    def pack(self, probe_token_ids_T: Int32s, *, max_probe_gap: float) -> WeightManifest:
        """Policy version 0, from now on in shared memory. Raises `UserError` for a folder that holds no model."""
        policy = load_policy(self._folder, self._dtype)
        parameters = dict(policy.model.named_parameters())
        layout = laid_out((name, tuple(p.shape), p.dtype) for name, p in parameters.items())
        num_bytes = layout[-1].offset_bytes + layout[-1].num_bytes
        entries = []
        views = view_tensors(make_buffer(self._path, num_bytes), layout)
        for entry, (name, view) in zip(layout, views, strict=True):
            view.copy_(parameters[name])
            entries.append(replace(entry, digest=digest(view)))
        return WeightManifest(
            policy_version=0,
            node=self._node,
            path=str(self._path),
            num_bytes=num_bytes,
            tensors=tuple(entries),
            adapters=None,
            probe_token_ids_T=probe_token_ids_T,
            probe_logprobs_T=_probe_logprobs(policy, probe_token_ids_T),
            max_probe_gap=max_probe_gap,
        )

    def close(self) -> None:
        """Give the shared memory back."""
        self._path.unlink(missing_ok=True)


def _probe_logprobs(policy: TokenLogprobs, token_ids_T: Int32s) -> np.ndarray:
    """[T] float32, nats; 0 for the first token, which nothing predicts."""
    row = pack_row([(token_ids_T, np.arange(len(token_ids_T)) > 0)])
    logprobs_N = policy(row).float().numpy()
    return np.concatenate([np.zeros(1, dtype=np.float32), logprobs_N])
