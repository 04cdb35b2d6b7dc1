"""A model on the Hub becomes a folder: the real client of the Hugging Face Hub against a small one on 127.0.0.1."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from core.errors import UserError
from core.hub import HubModel, cached_folder, how_to_pin, is_commit, is_hub_name, model_folder
from core.pretrained import check_model, load_network, load_tokenizer
from tests.fakes import save_tiny_tokenizer
from tests.hub_server import COMMIT, NAME, OTHER_COMMIT, TOKEN, HubServer, serving, use_hub

MODEL = HubModel(NAME, COMMIT)
NOT_FETCHED = {
    "modeling_tiny.py": b"raise AssertionError('it ran')",
    "pytorch_model.bin": b"\x80\x04",
    "model.gguf": b"GGUF",
    "README.md": b"# tiny",
    "original/params.json": b"{}",
    "consolidated.safetensors": b"the weights once more",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one small layer with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tiny_tokenizer(folder, "good", "bad", "film")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return folder


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    files = {file.name: file.read_bytes() for file in folder.iterdir()} | NOT_FETCHED
    with serving(HubServer(files)) as hub:
        use_hub(hub, tmp_path / "cache", monkeypatch)
        yield hub


def complaint(model: HubModel = MODEL, node: str | None = None) -> str:
    with pytest.raises(UserError) as raised:
        model_folder(model, node=node)
    assert TOKEN not in str(raised.value)
    return str(raised.value)


def test_a_model_is_fetched_at_its_commit_and_loads(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    fetched = model_folder(MODEL)
    assert fetched.is_relative_to(tmp_path / "cache")
    assert fetched == cached_folder(MODEL)
    check_model(fetched, max_model_len=8)
    assert load_tokenizer(fetched)("good film")["input_ids"] == [2, 4]
    assert load_tokenizer(fetched).chat_template == "{{ messages[0].content }}"
    weights: Any = load_network(AutoModelForCausalLM, fetched).state_dict()
    for name, tensor in load_network(AutoModelForCausalLM, folder).state_dict().items():
        assert torch.equal(weights[name], tensor)
    assert {token for _, path, token in hub.requests if NAME in path} == {f"Bearer {TOKEN}"}


def test_no_code_and_nothing_else_that_is_not_read_is_fetched(hub: HubServer, folder: Path) -> None:
    fetched = model_folder(MODEL)
    expected = {file.name for file in folder.iterdir()}
    assert {file.name for file in fetched.iterdir()} == expected
    assert hub.asked_for("GET") == hub.asked_for("HEAD") == expected


def test_what_is_in_the_cache_is_used_although_the_hub_is_gone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(HubServer({file.name: file.read_bytes() for file in folder.iterdir()})) as hub:
        use_hub(hub, tmp_path / "cache", monkeypatch)
        first = model_folder(MODEL)
        num_requests = len(hub.requests)
        assert model_folder(MODEL) == first
        assert len(hub.requests) == num_requests, "a commit never changes"
    assert model_folder(MODEL) == first
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert model_folder(MODEL) == first
    with pytest.raises(
        UserError, match="HF_HUB_OFFLINE forbids to ask the Hub, and the cache .*`hf download "
    ):
        model_folder(HubModel(NAME, OTHER_COMMIT))


def test_half_of_a_model_is_not_taken_for_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(HubServer({file.name: file.read_bytes() for file in folder.iterdir()})) as hub:
        use_hub(hub, tmp_path / "cache", monkeypatch)
        hub.broken = {"tokenizer_config.json"}
        assert "cannot be reached (" in complaint()
        assert (cached_folder(MODEL) / "config.json").exists()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "does not hold all of it" in complaint()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        hub.broken = set()
        load_tokenizer(model_folder(MODEL))


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (
            (401, {"X-Error-Code": "GatedRepo"}),
            "is gated, and .*; ask for access at .*tiny-1.0, and put a token",
        ),
        ((403, {"X-Error-Code": "GatedRepo"}), "is gated, and "),
        (
            (401, {"X-Error-Code": "RepoNotFound"}),
            "knows no such model, or keeps it from this account; correct",
        ),
        ((404, {"X-Error-Code": "RepoNotFound"}), "knows no such model"),
        (
            (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
            "answers 401; give HF_TOKEN a token that may read it",
        ),
        ((403, {}), "answers 403; give HF_TOKEN a token that may read it"),
        ((503, {}), "answers 503; try again later"),
    ],
)
def test_a_refusal_says_what_to_do(
    hub: HubServer, refusal: tuple[int, dict[str, str]], expected: str
) -> None:
    hub.refusal = refusal
    with pytest.raises(UserError, match=expected):
        model_folder(MODEL)
    complaint()


def test_a_commit_or_a_model_that_is_not_there(hub: HubServer) -> None:
    missing = complaint(HubModel(NAME, OTHER_COMMIT))
    assert missing.startswith(
        f"model {NAME} at revision {OTHER_COMMIT}: {hub.url} has the model, but not this"
    )
    assert f"`hf models info {NAME}` shows as sha" in missing
    assert "knows no such model" in complaint(HubModel("tiny-lab/tynee", COMMIT))


def test_a_hub_that_cannot_be_reached_or_does_not_answer(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    hub.hangs.set()
    late = complaint(node="10.0.0.7")
    assert late.startswith(f"node 10.0.0.7: model {NAME} at revision {COMMIT}: {hub.url} cannot be reached (")
    assert "Timeout" in late
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "http://127.0.0.1:1 cannot be reached (ConnectError: " in complaint()
    assert "or set HF_HOME to a folder into which `hf download" in complaint()


def test_weights_in_other_formats_only(hub: HubServer) -> None:
    del hub.files["model.safetensors"]
    assert "holds no config.json with weights as safetensors" in complaint()
    assert not list(cached_folder(MODEL).glob("*.bin"))


def test_a_full_disk(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", fail)
    assert "cache (No space left on device); make room there, or set HF_HOME" in complaint()


def test_the_environment_says_where_the_hub_and_the_cache_are(hub: HubServer, tmp_path: Path) -> None:
    code = (
        "from core.hub import HubModel, cached_folder, model_folder\n"
        f"model = HubModel({NAME!r}, {COMMIT!r})\n"
        "print(cached_folder(model), model_folder(model))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": os.getcwd()}

    def run(**more: str) -> list[str]:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment | more, capture_output=True, text=True, check=True)
        assert TOKEN not in done.stdout + done.stderr
        return done.stdout.split()

    expected = str(tmp_path / "home" / "hub" / "models--tiny-lab--tiny-1.0" / "snapshots" / COMMIT)
    assert run(HF_TOKEN=TOKEN) == [expected, expected]
    assert {token for _, path, token in hub.requests if NAME in path} == {f"Bearer {TOKEN}"}
    num_requests = len(hub.requests)
    assert run(HF_HUB_OFFLINE="1") == [expected, expected]
    assert len(hub.requests) == num_requests


def test_a_folder_is_its_own_folder(tmp_path: Path) -> None:
    assert model_folder(tmp_path) == tmp_path


def test_the_newest_commit_is_told_where_the_hub_answers(hub: HubServer) -> None:
    told = how_to_pin(NAME)
    assert told == f'revision = "{COMMIT}", the newest now (which `hf models info {NAME}` shows as sha)'
    hub.refusal = (500, {})
    assert how_to_pin(NAME) == f'revision = "HASH", the one that `hf models info {NAME}` shows as sha'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", True),
        ("tiny-lab/tiny_1", True),
        ("Qwen2.5-0.5B-Instruct", False),
        ("/models/tiny", False),
        ("~/models/tiny", False),
        ("./models/tiny", False),
        ("../tiny", False),
        ("models/tiny/", False),
        ("runs/a/model", False),
        ("asset:tiny/tiny", False),
        ("", False),
    ],
)
def test_what_has_the_form_of_a_name_on_the_hub(text: str, expected: bool) -> None:
    assert is_hub_name(text) is expected


@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT[:12], COMMIT.upper(), COMMIT + "0", ""])
def test_only_the_whole_hash_is_a_commit(revision: str) -> None:
    assert is_commit(COMMIT)
    assert not is_commit(revision)
