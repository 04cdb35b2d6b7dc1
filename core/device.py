"""The device of a process: a GPU for who asked Ray for one, and for nobody else."""

import socket

import torch

from core.config import Resources
from core.errors import UserError


def device_of(table: str, resources: Resources) -> str:
    """`cuda` or `cpu`. `table`: of the recipe, that says `resources`.

    Raises `UserError` if torch finds no GPU: it would compute on CPUs, and nothing would say why it is slow.
    """
    if resources.num_gpus == 0:
        return "cpu"
    if not torch.cuda.is_available():
        reason = (
            "is built for CPUs; install the GPU builds of torch and vLLM there"
            if torch.version.cuda is None
            else f"finds none that CUDA {torch.version.cuda} can use; look at the driver with `leash doctor`"
        )
        raise UserError(
            f"{table}.resources.num_gpus = {resources.num_gpus:g}: torch {torch.__version__} on "
            f"{socket.gethostname()} {reason}"
        )
    return "cuda"
