"""`leash doctor --address` on a real Ray of one node."""

import pytest
import ray

from orchestration.cluster.launch import joined
from orchestration.doctor.cluster_facts import collect_from_nodes
from orchestration.doctor.facts import collect
from orchestration.doctor.findings import findings

pytestmark = pytest.mark.real


def test_every_node_of_a_cluster_tells_its_facts() -> None:
    with joined(None):
        nodes, silent = collect_from_nodes()
        address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    assert silent == []
    (facts,) = nodes
    here = collect()
    assert facts.node == f"{here.node} ({address})"
    assert (facts.versions, facts.python, facts.cache) == (here.versions, here.python, here.cache)
    assert [finding for finding in findings(nodes) if finding.node == "cluster"] == []
