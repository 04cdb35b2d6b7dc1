"""Rewards: a user's function that misbehaves in every way, and a reward model on text with and without an end."""

import importlib
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from actors.config import RewardServerReward
from actors.reward_model import RewardModel
from actors.reward_service.client import HttpReward
from actors.reward_service.scoring_process import outcomes_of
from actors.rewards import FunctionReward, load_function
from core.config import ModelConfig
from core.errors import RewardError, UserError
from core.messages import Completion
from tests.actors.reward_service.served import TOKEN, serving
from tests.fakes import make_completion, make_prompt, save_tiny_tokenizer

EOS = 1


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a user's module; its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> str:
        name = f"user_rewards_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        return name

    return write


def two_completions() -> list[Completion]:
    return [
        make_completion(5, 6, prompt=make_prompt(text="one", rating=1, topic="a"), text="first"),
        make_completion(7, prompt=make_prompt(text="two", rating=2), text="second"),
    ]


def test_texts_and_columns_are_handed_over_by_name(write_module: Callable[[str], str]) -> None:
    """`topic` is not known of every prompt of the batch, so the function does not see it."""
    module = write_module(
        "seen = []\n"
        "def reward(prompts, completions, **columns):\n"
        "    seen.append((prompts, completions, columns))\n"
        "    return columns['rating']\n"
    )
    reward = FunctionReward(f"{module}:reward")
    assert reward.score(two_completions()) == [1.0, 2.0]
    seen = importlib.import_module(module).seen
    assert seen == [(["one", "two"], ["first", "second"], {"rating": [1, 2]})]


@pytest.mark.parametrize(
    "allocate",
    [
        "bytearray(2**24)",
        "numpy.zeros(2**21)",
        "torch.zeros(2**22)",
        "mmap.mmap(-1, 2**24, mmap.MAP_PRIVATE)",
    ],
)
def test_memory_without_end_is_an_error_that_names_the_limit(
    write_module: Callable[[str], str], allocate: str
) -> None:
    module = write_module(
        "import mmap, numpy, torch\n"
        "def reward(prompts, completions, **columns):\n"
        "    kept = []\n"
        "    while len(kept) < 1000:\n"
        f"        kept.append({allocate})\n"
        "    return [0.0, 0.0]\n"
    )
    reward = FunctionReward(f"{module}:reward", memory_gib=0.25)
    with pytest.raises(
        RewardError, match=r"reward reached its limit of 0.25 GiB of memory: raise memory_gib"
    ):
        reward.score(two_completions())
    assert reward.exhausted


def test_the_limit_is_only_for_the_function(write_module: Callable[[str], str]) -> None:
    module = write_module(
        "def reward(prompts, completions, **columns):\n    return [float(len(bytearray(2**27)))] * 2\n"
    )
    reward = FunctionReward(f"{module}:reward", memory_gib=0.25)
    assert len(bytearray(2**29)) == 2**29
    assert reward.score(two_completions()) == [2.0**27, 2.0**27]
    assert not reward.exhausted


def test_a_module_that_needs_more_than_its_limit_does_not_load(write_module: Callable[[str], str]) -> None:
    module = write_module("table = bytearray(2**29)\n")
    with pytest.raises(UserError, match=r"cannot be loaded \(MemoryError\)"):
        FunctionReward(f"{module}:reward", memory_gib=0.25)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("raise KeyError('lost')", "raised KeyError: 'lost'"),
        ("return [1.0]", "returned 1 rewards for 2 completions"),
        ("return [1.0, 2.0, 3.0]", "returned 3 rewards for 2 completions"),
        ("return []", "returned 0 rewards for 2 completions"),
        ("return [1.0, float('nan')]", "returned nan for completion 1"),
        ("return [float('-inf'), 1.0]", "returned -inf for completion 0"),
        ("return [1.0, None]", "must return a list of numbers, not .*None"),
        ("return [1.0, 'good']", "must return a list of numbers, not .*good"),
        ("return [[1.0], [2.0]]", "must return a list of numbers"),
        ("return None", "must return a list of numbers, not None"),
        ("return 1.0", "must return a list of numbers, not 1.0"),
    ],
)
def test_what_a_function_does_wrong_is_said_with_its_name(
    write_module: Callable[[str], str], body: str, complaint: str
) -> None:
    name = f"{write_module(f'def reward(prompts, completions, **columns):{chr(10)}    {body}')}:reward"
    with pytest.raises(UserError, match=f"reward function {name} {complaint}"):
        FunctionReward(name).score(two_completions())


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("", "cannot be loaded .*no attribute 'reward'"),
        ("import a_package_that_is_not_there", "cannot be loaded .*a_package_that_is_not_there"),
        ("def reward(:", "cannot be loaded .*invalid syntax"),
        ("1 / 0", "cannot be loaded .*division by zero"),
        ("reward = 3", "is a int, not a function"),
    ],
)
def test_a_function_that_cannot_be_had_is_said_with_its_name(
    write_module: Callable[[str], str], source: str, complaint: str
) -> None:
    name = f"{write_module(source)}:reward"
    with pytest.raises(UserError, match=f"{name}.*{complaint}"):
        FunctionReward(name)


def test_a_module_that_is_not_there_is_said_with_its_name() -> None:
    with pytest.raises(UserError, match="'no_such_module_here:reward' cannot be loaded"):
        load_function("no_such_module_here:reward")


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
        initializer_range=0.3,
    )
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(folder)
    save_tiny_tokenizer(folder, *(f"word{index}" for index in range(18)))
    return folder


@pytest.fixture(scope="module")
def reward_model(reward_folder: Path) -> RewardModel:
    return RewardModel(reward_folder, reward_folder, ModelConfig(path="unused"), device="cpu")


def test_the_score_stands_at_the_last_token_of_each_text(
    reward_model: RewardModel, reward_folder: Path
) -> None:
    alone: LlamaForSequenceClassification = LlamaForSequenceClassification.from_pretrained(
        reward_folder, dtype=torch.float32
    )
    completions = [
        make_completion(5, 6, 7),
        make_completion(8),
        make_completion(9, 10, prompt=make_prompt(3, 4, 5)),
    ]
    with torch.no_grad():
        wanted = [
            float(alone.score(alone.model(torch.tensor(c.token_ids_T[None]).long()).last_hidden_state)[0, -1])
            for c in completions
        ]
    assert reward_model.score(completions) == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 0.1


def test_the_end_of_sequence_token_is_not_scored(reward_model: RewardModel) -> None:
    without, once, twice, inside = reward_model.score(
        [
            make_completion(5, 6),
            make_completion(5, 6, EOS),
            make_completion(5, 6, EOS, EOS),
            make_completion(5, EOS, 6),
        ]
    )
    assert once == pytest.approx(without, abs=1e-6)
    assert twice == pytest.approx(without, abs=1e-6)
    assert inside != pytest.approx(without, abs=1e-2)  # only trailing ones are left out


def test_a_completion_without_text_is_scored_at_the_prompt(reward_model: RewardModel) -> None:
    """Nothing of the prompt is taken away, even if it ends in an end-of-sequence token."""
    ended = make_prompt(5, EOS)
    empty, alone = reward_model.score(
        [make_completion(EOS, prompt=ended), make_completion(6, prompt=make_prompt(5))]
    )
    (at_prompt,) = reward_model.score([make_completion(prompt=ended)])
    assert empty == pytest.approx(at_prompt, abs=1e-6)
    assert empty != pytest.approx(alone, abs=1e-2)


def test_a_reward_model_must_share_the_tokenizer(reward_folder: Path, tmp_path: Path) -> None:
    save_tiny_tokenizer(tmp_path, "other", "words")
    with pytest.raises(UserError, match="its tokenizer is not the one of"):
        RewardModel(reward_folder, tmp_path, ModelConfig(path="unused"), device="cpu")


def test_a_reward_model_behind_a_server_gives_the_very_same_numbers(reward_model: RewardModel) -> None:
    completions = [
        make_completion(5, 6, 7),
        make_completion(8, EOS),
        make_completion(9, 10, prompt=make_prompt(3, 4, 5)),
    ]
    with serving(
        lambda batch: outcomes_of(reward_model, batch), vocab_size=reward_model.vocab_size
    ) as served:
        config = RewardServerReward(kind="http", name="far", url=served.url, token_env="TOKEN")
        with patch.dict("os.environ", TOKEN=TOKEN):
            far = HttpReward(config)
        assert far.score(completions) == reward_model.score(completions)
        with pytest.raises(RewardError, match="token id 20: the reward model knows those below 20"):
            far.score([make_completion(20)])
