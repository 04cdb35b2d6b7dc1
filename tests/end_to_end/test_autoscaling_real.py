"""Ray's own autoscaler starts nodes for workers that find no room, and takes away those that have left them.

Its nodes are processes of this machine, and the rollout workers have no engine: what they ask of Ray is real.
`ray.cluster_utils.AutoscalingCluster` does the same, but stops every Ray of the machine first.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.authentication_test_utils import reset_auth_token_state
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from actors import handles
from actors.config import FaultsConfig, RolloutConfig
from actors.fleet import Fleet
from actors.handles import RolloutHandle
from actors.slot import WorkerState
from actors.weight_relay import WeightRelay
from actors.worker import ActorSetup, RolloutWorker
from core.config import ModelConfig, Resources
from core.remote import node_id
from core.weights import WeightManifest
from core.worker_report import WorkerReport, own_report
from orchestration.cluster import launch
from orchestration.cluster.placement import Worker
from tests.end_to_end.ray_cluster import RayCluster
from tests.fakes import make_manifest

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

DEADLINE_S = 120
WEIGHT_BYTES = 10 * 2**20
HALF = Resources(num_cpus=0.5, threads=1)
ENVIRONMENT = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}


class Engineless(RolloutWorker):
    """A rollout worker that is up at once."""

    def ready(self) -> str:
        return node_id()

    def ping(self) -> WorkerReport:
        return own_report()

    def pull_weights(self, manifest: WeightManifest, weights: Any = None) -> Any:
        """Bytes that came over Ray's object store."""
        return 0 if weights is None else len(weights)


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[None]:
    """This process is the driver in a cluster of one node that may grow."""
    config = tmp_path / "autoscaling.json"
    growing = RayCluster(
        tmp_path,
        num_cpus=1,
        head_options=[f"--autoscaling-config={config}"],
        head_environment=ENVIRONMENT,
    )
    config.write_text(json.dumps(configuration(growing.address)), encoding="utf-8")
    with growing as started, pytest.MonkeyPatch.context() as environment:
        for name, value in started.settings.items():
            environment.setenv(name, value)
        reset_auth_token_state()
        with launch.joined(started.address):
            yield
    reset_auth_token_state()


@pytest.mark.usefixtures("joined")
def test_nodes_come_with_rollout_workers_and_go_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handles, "RolloutWorker", Engineless)
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(WEIGHT_BYTES))
    setup = ActorSetup(
        model_source=tmp_path, model=ModelConfig(path=str(tmp_path)), rollout=RolloutConfig(resources=HALF)
    )

    async def scenario() -> None:
        group = await launch._reserve([Worker(name="learner-0", resources=HALF)], DEADLINE_S)
        manifest = replace(
            make_manifest(1), node=launch._node_of(group), path=str(weights), num_bytes=WEIGHT_BYTES
        )
        relay, pulled = WeightRelay(), list[Any]()

        async def admit(worker: RolloutHandle) -> bool:
            pulled.append(await worker.pull_weights(manifest, deadline_s=DEADLINE_S))
            return True

        fleet = Fleet(
            "rollout",
            lambda name: RolloutHandle(name, setup, near_node=None, relay=relay, deadline_s=DEADLINE_S),
            faults=FaultsConfig(),
            start_s=DEADLINE_S,
        )
        fleet.admit = admit
        await fleet.start(1)
        assert num_nodes() == 1, "half of the node is the learner's, half the worker's"
        fleet.scale(3)
        await until(lambda: num_serving(fleet) == 3, "three workers serve")
        assert num_nodes() == 2
        assert sorted(pulled) == [0, WEIGHT_BYTES, WEIGHT_BYTES]
        fleet.scale(1)
        await until(lambda: num_nodes() == 1, "the idle node is gone")
        assert num_serving(fleet) == 1
        await fleet.close()

    asyncio.run(scenario())


def num_nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]


def num_serving(fleet: Fleet[RolloutHandle]) -> int:
    return sum(slot.state is WorkerState.SERVING for slot in fleet.slots)


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S} s: {what}; {num_nodes()} nodes") from None


def configuration(address: str) -> dict[str, Any]:
    """Of an autoscaler that adds up to two nodes of one CPU."""
    return {
        "cluster_name": "leash-test",
        "max_workers": 2,
        "provider": {
            "type": "external",  # Ray knows it by a name, too, whose defaults its wheel lacks
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "small": {
                "resources": {"CPU": 1, "object_store_memory": 10**8},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        "head_node_type": "ray.head.default",
        "idle_timeout_minutes": 0.05,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
