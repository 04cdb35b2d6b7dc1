"""The door to DeepSpeed: a module whose weights, gradients and optimizer state ZeRO may shard.

Import this only in a process whose environment names its rank (see `learner/process_group.py`): DeepSpeed reads it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from core.dropout import set_attention_dropout
from core.errors import NonFiniteError, UserError, WorkerError
from learner.checkpoint_files import CheckpointFiles, read_tensors
from learner.config import LearnerConfig
from learner.process_group import all_reduce_max, place_in_group, raise_together
from learner.resharding import set_state
from learner.saved_state import SavedState

GATHER_BYTES = 64 * 2**20
"""ZeRO-3 gathers parameters for a push in buckets of about this size, so that no rank holds a second model."""

SAVED_CLASSES = (fragment_address, LossScaler, ZeroStageEnum)
"""What DeepSpeed pickles into its files beside tensors and plain values. Nothing else is unpickled."""


@contextmanager
def sharded_loading(config: LearnerConfig, *, dtype: str) -> Iterator[None]:
    """Within it, under ZeRO-3, what transformers loads is split over the ranks module by module, so that no rank
    ever holds the whole model. All ranks must load the same. Raises `UserError` on all ranks if one of them did:
    rank 0 alone reads the weights."""
    if config.zero_stage != 3:
        yield
        return
    # transformers looks for it for as long as it lives.
    sharding = HfDeepSpeedConfig(_deepspeed_config(config, getattr(torch, dtype), clips_itself=False))
    failure = None
    try:
        yield
    except UserError as error:
        failure = str(error)
    finally:
        unset_hf_deepspeed_config()
        del sharding
    raise_together(failure, UserError)


class _DeepSpeedFiles(CheckpointFiles, CheckpointEngine):  # type: ignore[misc]  # DeepSpeed has no types
    """`CheckpointFiles`, with the rest of what DeepSpeed asks."""


class ZeroEngine:
    """One network and its optimizer.

    for row in rows:
        engine.backward(loss_of(engine(row)), last=row is rows[-1])
    gradient_norm = engine.step(learning_rate)
    """

    def __init__(self, module: nn.Module, config: LearnerConfig, *, dtype: str) -> None:
        self.zero_stage = config.zero_stage
        self._dtype: torch.dtype = getattr(torch, dtype)
        # Without sharding or bfloat16 DeepSpeed would clip too, but not tell the norm: it would be taken twice.
        self._clips_itself = config.zero_stage == 0 and self._dtype == torch.float32
        self._gradient_clip = config.gradient_clip
        self._drops = config.dropout > 0
        if self._drops and config.lora is None:
            set_attention_dropout(module, config.dropout)
        if config.gradient_checkpointing:
            module.model.gradient_checkpointing_enable()  # type: ignore[union-attr,operator]
        module.train()  # from_pretrained leaves it in eval mode, where checkpointing silently does nothing
        optimizer = torch.optim.AdamW(
            [parameter for parameter in module.parameters() if parameter.requires_grad],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=_deepspeed_config(config, self._dtype, clips_itself=self._clips_itself),
        )
        self._files = self._engine.checkpoint_engine = _DeepSpeedFiles(SAVED_CLASSES)
        # Scripts that DeepSpeed copies beside the files, by other means than the checkpoint engine: see `save`.
        self._engine._copy_recovery_script = lambda folder: None
        if config.zero_stage == 0 and dist.get_world_size() == 1:
            # Left on, DeepSpeed copies all gradients into one buffer and back for a sum over one rank.
            self._engine.enable_backward_allreduce = False
        self.module: nn.Module = self._engine.module
        self._broken_gradient = False
        # A NaN anywhere in the backward pass reaches the lowest trained parameters: look there.
        lowest = next(parameter for parameter in module.parameters() if parameter.requires_grad)
        lowest.register_hook(self._check_gradient)

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    def __call__(self, *inputs: Any, **options: Any) -> torch.Tensor:
        """Forward, recording what backward needs. Nothing is dropped where nothing is learned."""
        if self._drops:
            self.module.train(torch.is_grad_enabled())
        output: torch.Tensor = self._engine(*inputs, **options)
        return output

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulate gradients. `last` marks the micro-batch after which `step` follows.

        Raises `NonFiniteError` for a loss or a gradient that is not finite; the weights are unchanged.
        DeepSpeed averages over ranks, and losses are normalised over all of them: hence the factor.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * dist.get_world_size())
        # Together, or the ranks without the NaN would step on the gradient that they share.
        broken = self._broken_gradient or not bool(torch.isfinite(loss))
        if all_reduce_max(int(broken)):
            raise NonFiniteError(
                f"a loss or gradient is not finite (loss on this rank: {float(loss)}); the weights are "
                "those from before the step. Lower the learning rate, or look for rewards that explode."
            )
        if not last:
            self._engine.step()  # only counts the micro-batch

    def step(self, learning_rate: float) -> float:
        """Clip, update the weights, and give the gradient's norm before clipping."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        own_norm = self._clip_unsharded() if self._clips_itself else None
        self._engine.step()
        return float(self._engine.get_global_grad_norm() if own_norm is None else own_norm)

    def full_parameters(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, full tensor) of the parameters whose name is wanted, in one order. All ranks must iterate
        together; under ZeRO-3 a tensor is whole only until the next one is asked for."""
        for bucket in self._buckets(wanted):
            with self._gathered([parameter for _, parameter in bucket]):
                for name, parameter in bucket:
                    yield name, parameter.detach()

    def parameter_shapes(self) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
        """(name, full shape, dtype) of every parameter, in the order of `full_parameters`."""
        for name, parameter in self.module.named_parameters():
            yield name, tuple(getattr(parameter, "ds_shape", parameter.shape)), parameter.dtype

    @property
    def flops_per_token(self) -> float:
        """Operations to learn from one token: forward and backward through every weight, and the gradients of
        those that are trained; 6 a weight if all are. Attention itself is left out (arXiv:2001.08361, sec. 2.1)."""
        parameters = list(self.module.parameters())
        trained = sum(_full_numel(parameter) for parameter in parameters if parameter.requires_grad)
        return 4.0 * sum(map(_full_numel, parameters)) + 2.0 * trained

    def save(self, folder: Path, tag: str) -> None:
        """Write weights and optimizer state. All ranks must call. Raises `WorkerError` on all of them if one
        could not write; DeepSpeed has barriers behind its writes, so these raise nothing themselves."""
        self._files.failure = None
        self._engine.save_checkpoint(str(folder), tag=tag, save_latest=False)
        raise_together(self._files.failure, WorkerError)

    def load(self, folder: Path, tag: str) -> None:
        """Read what `save` wrote, on the same number of ranks and ZeRO stage: bit for bit, and each rank its own
        files. All ranks must call.

        Raises `UserError` on all ranks, before a weight changes, if a file holds anything but tensors.
        """
        rank, world_size = place_in_group()
        files = sorted((folder / tag).glob("*.pt"))
        failure = None if files else f"{folder / tag}: no files of DeepSpeed's in it"
        try:
            for file in files[rank::world_size]:
                read_tensors(file, SAVED_CLASSES, peek=True)
        except UserError as error:
            failure = str(error)
        raise_together(failure, UserError)
        path, _ = self._engine.load_checkpoint(str(folder), tag=tag)
        assert path is not None, "there are files"

    def load_resharded(self, folder: Path, tag: str, *, zero_stage: int, world_size: int) -> None:
        """Read what so many ranks wrote under another ZeRO stage. All ranks must call. Raises as `load` does."""
        failure = None
        try:
            saved = SavedState(
                folder / tag,
                zero_stage=zero_stage,
                world_size=world_size,
                parameters={name: one.requires_grad for name, one in self.module.named_parameters()},
                read=lambda file: read_tensors(file, SAVED_CLASSES, peek=True),
            )
        except UserError as error:
            failure = str(error)
        raise_together(failure, UserError)
        set_state(self._engine, saved)

    def _clip_unsharded(self) -> float:
        """Clip, and give the norm before. Ranks hold the same gradient by now."""
        return float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._gradient_clip))

    def _check_gradient(self, gradient: torch.Tensor) -> None:
        self._broken_gradient |= not bool(torch.isfinite(gradient).all())

    def _gathered(self, parameters: list[nn.Parameter]) -> Any:
        return deepspeed.zero.GatheredParameters(parameters) if self.zero_stage == 3 else nullcontext()

    def _buckets(self, wanted: Callable[[str], bool]) -> Iterator[list[tuple[str, nn.Parameter]]]:
        bucket: list[tuple[str, nn.Parameter]] = []
        size = 0
        for name, parameter in self.module.named_parameters():
            if not wanted(name):
                continue
            bucket.append((name, parameter))
            size += _full_numel(parameter) * parameter.element_size()
            if size >= GATHER_BYTES:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket


def _full_numel(parameter: nn.Parameter) -> int:
    """ZeRO-3 leaves an empty tensor behind, so `numel()` would say 0."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _deepspeed_config(config: LearnerConfig, dtype: torch.dtype, *, clips_itself: bool) -> dict[str, Any]:
    # A sum of many micro-batches in bfloat16 loses its small summands. Without sharding DeepSpeed has no other, and
    # with stage 1 it would take another optimizer, with a whole float32 gradient on every rank.
    sums_in_float32 = dtype == torch.bfloat16 and config.zero_stage >= 2
    return {
        "train_micro_batch_size_per_gpu": 1,
        "data_types": {"grad_accum_dtype": "fp32" if sums_in_float32 else None},
        "zero_optimization": _zero_config(config),
        "bf16": {"enabled": dtype == torch.bfloat16},
        "gradient_clipping": 0.0 if clips_itself else config.gradient_clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _zero_config(config: LearnerConfig) -> dict[str, Any]:
    # Pinned memory is what a GPU reads and writes without the CPU's help.
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    parts = {
        "none": (),
        "optimizer": ("offload_optimizer",),
        "parameters": ("offload_optimizer", "offload_param"),
    }[config.offload]
    return {"stage": config.zero_stage, **dict.fromkeys(parts, host)}
