"""The facts of every node of a Ray cluster: one task a node. A door to Ray."""

from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestration.cluster.launch import joined
from orchestration.doctor.facts import Facts, collect
from orchestration.doctor.findings import Finding

NODE_S = 120.0
"""For all nodes to answer, which import Leash first."""


def collect_from_cluster(address: str | None) -> tuple[list[Facts], list[Finding]]:
    """Facts of every node that answers, and a finding for each that does not. Raises `UserError` if no cluster is
    there."""
    with joined(address):
        return collect_from_nodes()


def collect_from_nodes() -> tuple[list[Facts], list[Finding]]:
    """Of the cluster that this process is connected to."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    task: Any = ray.remote(collect)
    asked: dict[Any, str] = {}
    for node in nodes:
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        answer = task.options(scheduling_strategy=place, num_cpus=0, max_retries=0).remote()
        asked[answer] = str(node["NodeManagerAddress"])
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_S)
    facts, silent = [], [_unreachable(asked[answer], f"no answer within {NODE_S:g} s") for answer in late]
    for answer in done:
        try:
            found: Facts = ray.get(answer)
            facts.append(replace(found, node=f"{found.node} ({asked[answer]})"))
        except RayError as error:
            silent.append(_unreachable(asked[answer], str(error).strip().splitlines()[-1]))
    return sorted(facts, key=lambda each: each.node), silent


def _unreachable(node: str, reason: str) -> Finding:
    fix = (
        "install Leash and its lock there, at the version that is installed here, and start `ray start` in it"
    )
    return Finding(node=node, level="problem", what=f"its facts cannot be had: {reason}", fix=fix)
