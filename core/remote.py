"""Waiting for another process: every wait has a deadline, and an error that names who did not answer."""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

import psutil
import ray
from ray.exceptions import RayError, RayTaskError

from core.config import Resources
from core.errors import WorkerLost, WorkerSilent

T = TypeVar("T")

MALLOC_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=17179869184"
)
"""Keep freed memory and ask for huge pages. Activations of hundreds of megabytes come and go in every step; given
back to the system each time, touching them again costs up to half of the step (measured on a virtual machine)."""

WORKER_VARIABLE = "LEASH_WORKER"
"""Environment variable of every worker process: its stable name, such as rollout-0."""

OPENMP_SPINS = "2000"
"""About a tenth of a millisecond: from one parallel region to the next. Sleeping at once and being woken for every
region costs a tenth of a learner's step and a quarter of a short forward pass (measured on a virtual machine)."""


async def answer(reference: Awaitable[T], *, who: str, what: str, deadline_s: float) -> T:
    """The result of a remote call.

    Raises the error that the worker raised (`UserError` stays one), `WorkerLost` if the worker died, or
    `WorkerSilent` if it did not answer within the deadline.
    """
    try:
        async with asyncio.timeout(deadline_s):  # wait_for may swallow a cancellation
            return await reference
    except TimeoutError:
        raise WorkerSilent(f"{who} did not answer within {deadline_s:g} s ({what})") from None
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:  # of its process, its node, or a result that went with them
        reason = str(error).partition("\n")[0]  # Ray goes on with advice
        raise WorkerLost(f"{who} died ({what}): {reason}") from error


def actor_options(
    worker: str, resources: Resources, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Ray options of a worker: its resources, its name for who looks at its process, and threads that spin only for
    a moment while they wait.

    Left to itself Ray gives an actor one thread, and OpenMP keeps idle threads spinning on cores that the
    other parts need. Who asks for no GPU it shows all of the node's, which libraries would take.
    """
    variables = {
        WORKER_VARIABLE: worker,
        "OMP_NUM_THREADS": str(resources.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": OPENMP_SPINS,
        "TOKENIZERS_PARALLELISM": "false",
        "GLIBC_TUNABLES": MALLOC_TUNABLES,
        **({} if resources.num_gpus else {"CUDA_VISIBLE_DEVICES": ""}),
        **(environment or {}),
    }
    return {
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        "runtime_env": {"env_vars": variables},
        "max_restarts": 0,
    }


def node_address() -> str:
    """Address of this node, as other nodes reach it."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def node_interface() -> str | None:
    """Network interface of this node that has `node_address`; None if none has, as behind address translation."""
    own = node_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            return name
    return None


def node_id() -> str:
    """Ray's id of this node."""
    return str(ray.get_runtime_context().get_node_id())
