"""The engine's end of a weight push, registered with vLLM's weight-transfer factory.

Everything happens inside `receive_weights`, which vLLM runs between two engine steps: a running request
meets either the old weights or the new ones, never a mixture. The learner's end is `learner/weight_push.py`;
adapters alone are taken in `actors/adapter_pull.py`.
"""

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from core.weights import TensorEntry, verified_tensors

SHARED_MEMORY = "leash_shared_memory"
"""Name under which vLLM finds this backend."""


@dataclass
class NoInitInfo(WeightTransferInitInfo):
    """Shared memory needs no rendezvous."""


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):
    """Where the new weights lie. Plain fields, because vLLM carries them as a dict."""

    path: str = ""
    num_bytes: int = 0
    tensors: list[TensorEntry] = field(default_factory=list)


class SharedMemoryEngine(WeightTransferEngine[NoInitInfo, SharedMemoryUpdate]):
    """Loads a whole model from a buffer in shared memory, and checks every tensor's digest first."""

    init_info_cls = NoInitInfo
    update_info_cls = SharedMemoryUpdate

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Nothing: the engine would die if it ran between start and finish, so all is done at once."""

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        """Verify, load and re-pack. Raises `WorkerError` naming the first tensor that differs."""
        weights = verified_tensors(update_info.path, update_info.num_bytes, tuple(update_info.tensors))
        initialize_layerwise_reload(self.model)
        model: Any = self.model  # typed as any module; those of vLLM can load weights
        model.load_weights(weights)
        finalize_layerwise_reload(self.model, self.model_config)  # type: ignore[no-untyped-call]
        self._repack_tied_heads()

    def finish_weight_update(self) -> None:
        """Nothing: see `start_weight_update`."""

    def shutdown(self) -> None:
        """Nothing to release: the buffer is the learner's."""

    def _repack_tied_heads(self) -> None:
        """On CPUs a tied output head keeps a packed copy of its weights, which vLLM's reload forgets.

        Without this the log-probs of every token would silently be those of a mixture of two policies.
        """
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
                dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def register() -> None:
    """vLLM calls this in each of its processes, maybe more than once (entry point `vllm.general_plugins`)."""
    registered: dict[str, Any] = WeightTransferEngineFactory._registry
    if SHARED_MEMORY not in registered:
        WeightTransferEngineFactory.register_engine(SHARED_MEMORY, SharedMemoryEngine)
