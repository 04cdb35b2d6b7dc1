"""Random models of a few layers, for tests on the real stack that need its parts and not its wits."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from orchestration.assets import MODEL, asset_path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SMOLLM2_VOCABULARY = 49152
SPOKEN = """ the film a story her voice this plot ending his debut every scene it is seems was never could be has
 always been good bad dull bright slow quick warm cold we they see feel like love hate more less tree green deep"""
"""The words that a tiny policy says, so that a few hundred samples are enough to learn which of them pay."""
SPOKEN_LOGIT = 3.0
"""Size of the feature that spoken tokens have, and that a model that reads them looks for."""
INITIALIZER_RANGE = 0.2
"""Ten times the usual: with the usual a random model is so close to uniform that wrong weights hardly show."""


def build_tiny_model(
    folder: Path, *, seed: int = 0, num_layers: int = 2, vocabulary: int = SMOLLM2_VOCABULARY
) -> Path:
    """A Llama with random weights and tied embeddings; with the whole vocabulary, SmolLM2's tokenizer beside it."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_tiny_config(num_layers, vocabulary))
    if vocabulary == SMOLLM2_VOCABULARY:
        _copy_tokenizer(folder)
        _teach_words(model, AutoTokenizer.from_pretrained(folder))
    model.save_pretrained(folder)
    return folder


def build_tiny_scalar_model(folder: Path, *, seed: int = 1, vocabulary: int = SMOLLM2_VOCABULARY) -> Path:
    """A reward model of the same family: a random backbone and a random head with one output."""
    config = _tiny_config(2, vocabulary)
    config.num_labels = 1
    torch.manual_seed(seed)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    if vocabulary == SMOLLM2_VOCABULARY:
        _copy_tokenizer(folder)
    return folder


def _tiny_config(num_layers: int, vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,  # heads of 32, the smallest that vLLM's attention on CPUs takes
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def _teach_words(model: LlamaForCausalLM, tokenizer: Any) -> None:
    """Let the model answer words of `SPOKEN` with words of it: one feature is theirs alone, read and written."""
    words = "".join(f" {word}" for word in SPOKEN.split())
    token_ids = [tokenizer.eos_token_id, *tokenizer(words)["input_ids"]]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:  # quiet enough to leave the feature in place
                parameter.mul_(0.1)
        embeddings: Any = model.get_input_embeddings().weight
        embeddings[:, 0] = 0
        embeddings[token_ids, 0] = SPOKEN_LOGIT


def _copy_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy2(asset_path(MODEL.name) / name, folder / name)
