"""The learner's end of a weight push: pack policy or adapters into shared memory, with digests and a probe.

The engine's end is `actors/weight_pull.py`.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from core.messages import Int32s
from core.packing import pack_row
from core.weights import (
    AdapterScale,
    TensorEntry,
    WeightManifest,
    digest,
    laid_out,
    make_buffer,
    new_buffer_path,
    view_tensors,
)
from learner.learner import Learner
from learner.lora import (
    adapter_parameters,
    adapter_shapes,
    frozen_names,
    merged_parameters,
    merged_shapes,
)

SCRATCH_BYTES = 2**27
"""Target of the plain copy that a push is compared with: larger than caches, smaller than a model."""
TIMED_BYTES = 2**30
"""As much of the buffer is copied in every push: a tenth of a second's work."""


class WeightPush:
    """One buffer in shared memory, rewritten for every policy version.

    A version may be packed once every worker has taken the one before: they read the same bytes.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        rank: int,
        node: str,
        adapters_only: bool,
        probe_token_ids_T: Int32s,
        max_probe_gap: float,
    ) -> None:
        """`node`: Ray's id of the node that this rank is on."""
        assert not adapters_only or learner.lora is not None, "checked with the recipe"
        self._learner = learner
        self._adapters_only = adapters_only
        self._rank = rank
        self._probe_token_ids_T = probe_token_ids_T
        self._max_probe_gap = max_probe_gap
        self._node = node
        self._path = new_buffer_path()
        policy = learner.policy
        self._layout = laid_out(adapter_shapes(policy) if adapters_only else merged_shapes(policy))
        self._num_bytes = self._layout[-1].offset_bytes + self._layout[-1].num_bytes
        self._frozen: set[str] = set() if adapters_only else frozen_names(policy)
        self._digests: dict[str, str] = {}
        self._buffer: torch.Tensor | None = None
        self._scratch: torch.Tensor | None = None

    def pack(self) -> tuple[WeightManifest | None, dict[str, float]]:
        """The manifest (rank 0 alone has one) and what it took. All ranks must call: ZeRO-3 gathers."""
        started = time.perf_counter()
        entries = self._write()
        packed = time.perf_counter()
        probe_logprobs_T = self._score_probe()
        timing = {"pack_s": packed - started, "probe_s": time.perf_counter() - packed}
        if self._rank != 0:
            return None, timing
        manifest = WeightManifest(
            policy_version=self._learner.policy_version,
            node=self._node,
            path=str(self._path),
            num_bytes=self._num_bytes,
            tensors=entries,
            adapters=self._scale(),
            probe_token_ids_T=self._probe_token_ids_T,
            probe_logprobs_T=probe_logprobs_T,
            max_probe_gap=self._max_probe_gap,
        )
        return manifest, timing | {"copy_s": self._time_plain_copy(), "bytes": float(self._num_bytes)}

    def close(self) -> None:
        """Give the shared memory back."""
        self._path.unlink(missing_ok=True)

    def _write(self) -> tuple[TensorEntry, ...]:
        views = {}
        if self._rank == 0:
            if self._buffer is None:  # not before: a run that fails to start would leave it behind
                self._buffer = make_buffer(self._path, self._num_bytes)
            views = dict(view_tensors(self._buffer, self._layout))
        entries = []
        for entry, (_, parameter) in zip(self._layout, self._parameters(), strict=True):
            if self._rank == 0:
                view = views[entry.name]
                if entry.name not in self._frozen or entry.name not in self._digests:
                    view.copy_(parameter)
                    self._digests[entry.name] = digest(view)
                entries.append(replace(entry, digest=self._digests[entry.name]))
        return tuple(entries)

    def _parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        if self._adapters_only:
            return adapter_parameters(self._learner.policy)
        return merged_parameters(self._learner.policy, self._learner.lora)

    def _scale(self) -> AdapterScale | None:
        if not self._adapters_only:
            return None
        assert self._learner.lora is not None
        return AdapterScale(rank=self._learner.lora.rank, alpha=self._learner.lora.alpha)

    def _score_probe(self) -> Any:
        token_ids_T = self._probe_token_ids_T
        row = pack_row([(token_ids_T, np.arange(len(token_ids_T)) > 0)])
        logprobs = self._learner.probe_logprobs(row).float().numpy()
        return np.concatenate([np.zeros(1, dtype=np.float32), logprobs])

    def _time_plain_copy(self) -> float:
        """Seconds to copy as many bytes within memory: what the push is measured against. Of a large buffer a part
        is copied, and the time scaled: billions of weights would wait for a second in every push."""
        assert self._buffer is not None
        if self._scratch is None:
            self._scratch = torch.zeros(SCRATCH_BYTES, dtype=torch.uint8)
        part = self._buffer[:TIMED_BYTES]
        started = time.perf_counter()
        for chunk in part.split(SCRATCH_BYTES):
            self._scratch[: len(chunk)].copy_(chunk)
        return (time.perf_counter() - started) * len(self._buffer) / len(part)
