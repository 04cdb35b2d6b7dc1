"""The command `leash plan`: what a recipe will run, hold and move, and whether it fits, before anything starts."""

import argparse
import json
from dataclasses import replace

from core.errors import UserError
from orchestration.cluster.placement import workers_of
from orchestration.command import AddCommand
from orchestration.planning.machine import (
    GIB,
    GPU_MIB,
    WITHOUT_BFLOAT16,
    Machine,
    gpu_memory,
    own_ram,
    own_shared_memory,
)
from orchestration.planning.plan import make_plan
from orchestration.planning.plan_text import plan_lines
from orchestration.recipe.files import find_recipe
from orchestration.recipe.loading import load_with_sources


def add_plan_command(add_command: AddCommand) -> None:
    """To the commands that take a recipe and overrides."""
    plan = add_command("plan", _plan, "say what a recipe will run, hold and move, and whether it fits")
    gpu = plan.add_mutually_exclusive_group()
    gpu.add_argument("--gpu", metavar="NAME", help=f"the GPU of the nodes: {', '.join(GPU_MIB)}")
    gpu.add_argument("--gpu-memory-gib", metavar="GIB", type=float, help="or its memory")
    plan.add_argument("--gpus-per-node", metavar="N", type=int, default=8, help="default: %(default)s")
    plan.add_argument(
        "--ram-gib", metavar="GIB", type=float, help="memory of a node; default: this machine's"
    )
    plan.add_argument("--json", action="store_true", help="as JSON, for scripts")


def _plan(args: argparse.Namespace) -> int:
    path = find_recipe(args.recipe)
    recipe, source = load_with_sources(path, args.overrides)
    uses_gpus = any(worker.resources.num_gpus for worker in workers_of(recipe))
    plan = make_plan(recipe, source, _machine(args, uses_gpus=uses_gpus))
    print(json.dumps(plan, indent=2) if args.json else "\n".join(plan_lines(plan)))
    return 1 if plan["problems"] else 0


def _machine(args: argparse.Namespace, *, uses_gpus: bool) -> Machine:
    """The node that is described by options; without GPUs this one, where they say nothing."""
    for option in ("gpu_memory_gib", "gpus_per_node", "ram_gib"):
        value = getattr(args, option)
        if value is not None and not value > 0:
            raise UserError(
                f"--{option.replace('_', '-')} {value:g}: must be more than 0; give what a node has"
            )
    gpu_gib: float | None = args.gpu_memory_gib
    gpu_bytes = gpu_memory(args.gpu) if args.gpu else None if gpu_gib is None else int(gpu_gib * GIB)
    if uses_gpus and gpu_bytes is None:
        raise UserError(f"{args.recipe}: asks for GPUs, and nobody says which; add --gpu H100, say")
    machine = Machine(
        ram_bytes=None if args.ram_gib is None else int(args.ram_gib * GIB),
        gpu_bytes=gpu_bytes if uses_gpus else None,
        has_bfloat16=(args.gpu or "").lower() not in WITHOUT_BFLOAT16,
        gpus_per_node=args.gpus_per_node,
    )
    if uses_gpus or machine.ram_bytes is not None:
        return machine
    return replace(machine, ram_bytes=own_ram(), shm_bytes=own_shared_memory())
