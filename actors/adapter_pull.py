"""The engine's end of a push of adapters: beside its own frozen weights, from shared memory, without a file.

vLLM knows its adapter by one number, under which every version replaces the one before. So what is running goes on
under the new version, as with merged weights, and each token knows its version; the prefix cache is keyed by that
number too, and must be reset with every push. vLLM drops all adapters when a weight update ends, so these do
not go through its weight-transfer engine.
"""

from pathlib import Path
from typing import Any, get_args

from vllm.config.lora import MaxLoRARanks
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest

from core.errors import UserError
from core.models import linear_layers
from core.weights import WeightManifest, verified_tensors

ADAPTERS = LoRARequest(lora_name="policy", lora_int_id=1, lora_path="pushed-not-a-file")
"""What every request samples with. vLLM would look for the folder if nothing had been pushed, and fail."""


class AdapterPull:
    """What vLLM mixes into its worker class, so that the engine can call it there (`worker_extension_cls`)."""

    model_runner: Any

    def pull_adapters(self, manifest: WeightManifest) -> None:
        """Verify the adapters, and put them in the place of those before.

        Raises `WorkerError` naming the first tensor that differs, or `UserError` naming a layer without a place.
        """
        assert manifest.adapters is not None
        tensors = verified_tensors(manifest.path, manifest.num_bytes, manifest.tensors)
        manager: LoRAModelManager = self.model_runner.get_model().lora_manager
        dtype: Any = manager.lora_config.lora_dtype  # by now it is one
        alpha: Any = manifest.adapters.alpha  # vLLM declares an int, and divides by the rank
        adapters = LoRAModel.from_lora_tensors(
            ADAPTERS.adapter_id,
            {name: tensor.clone() for name, tensor in tensors},  # vLLM scales B where it lies
            PEFTHelper(r=manifest.adapters.rank, lora_alpha=alpha, target_modules=[]),
            device="cpu",
            dtype=dtype,
            weights_mapper=_renamed(manager.model),
        )
        _check_layers(adapters, manager)
        manager.remove_adapter(ADAPTERS.adapter_id)
        manager.add_adapter(adapters)
        manager.activate_adapter(ADAPTERS.adapter_id)


def adapter_options(model_path: Path, rank: int) -> dict[str, Any]:
    """Arguments of an engine that takes adapters of this rank beside every linear layer, and no other weights.

    The output head has none. Left to itself vLLM would wrap it as well, and the wrapper only knows the positions
    that are sampled from, so a probe scored beside running requests would break the engine.
    """
    return {
        "enable_lora": True,
        "max_lora_rank": min(steps for steps in get_args(MaxLoRARanks) if steps >= rank),
        "lora_target_modules": linear_layers(model_path),
        "worker_extension_cls": f"{AdapterPull.__module__}.{AdapterPull.__qualname__}",
    }


def _renamed(model: Any) -> Any:
    """vLLM's map from Hugging Face's names to its own, if the model has one."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return mapper and mapper.get_rename_mapper()


def _check_layers(adapters: LoRAModel, manager: LoRAModelManager) -> None:
    """vLLM passes over an adapter whose layer it does not know."""
    packed = {name for names in manager.packed_modules.values() for name in names}
    unknown = sorted(adapters.loras.keys() - manager.modules.keys() - packed)
    if unknown:
        raise UserError(
            f'weight_push.form: "adapters", but vLLM cannot adapt layer {unknown[0]} of this model; set "merged"'
        )
