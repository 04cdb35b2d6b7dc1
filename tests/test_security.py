"""What SECURITY.md promises of the sources: nothing here runs code that came with data.

Reads the sources; nothing is imported. The same rules run over made-up lines that break them.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("core", "actors", "learner", "orchestration", "benchmarks")
FILES = sorted(
    [path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py")]
    + [
        path
        for path in (REPOSITORY / "deploy").rglob("*")
        if path.is_file() and path.suffix not in (".lock", ".toml")
    ]
)

SWITCHES = (
    "VLLM_ALLOW_INSECURE_SERIALIZATION",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
)
"""Environment variables that turn a protection off. Nowhere, not even switched off: nobody reads a value."""
UNPICKLERS = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "dill.load",
    "joblib.load",
    "cloudpickle.loads",
}
UNPICKLING_MODULES = {"dill", "joblib", "cloudpickle", "marshal", "shelve"}


def violations(file: str, source: str) -> Iterator[str]:
    """Every line that breaks a promise, as a sentence."""
    for switch in SWITCHES:
        if switch in source:
            yield f"{file}: names {switch}"
    if not file.endswith(".py"):
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            )
            for name in UNPICKLING_MODULES.intersection(name.split(".")[0] for name in names):
                yield f"{file}:{node.lineno}: imports {name}"
            # By their full names they are seen below; torch.load under another name would not be.
            if isinstance(node, ast.ImportFrom) and _hides_a_loader(node):
                yield f"{file}:{node.lineno}: imports from {node.module}: write the full name where it is used"
        elif isinstance(node, ast.Call):
            yield from (f"{file}:{node.lineno}: {problem}" for problem in _call_problems(node))


def _hides_a_loader(node: ast.ImportFrom) -> bool:
    return node.module == "pickle" or (
        node.module == "torch" and "load" in (alias.name for alias in node.names)
    )


def _call_problems(call: ast.Call) -> Iterator[str]:
    called = ast.unparse(call.func)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if called in UNPICKLERS:
        yield f"{called}: runs what is in the file"
    if (
        called in ("torch.load", "load")
        and options.get("weights_only", "True" * (called == "load")) != "True"
    ):
        yield f"{called} without weights_only=True: runs what is in the file"
    if called.endswith(".load") and called.split(".")[0] in ("np", "numpy") and "allow_pickle" in options:
        yield f"{called} with allow_pickle: runs what is in the file"
    if options.get("trust_remote_code", "None" if _loads_a_model(called) else "False") != "False":
        yield f"{called} without trust_remote_code=False: runs what came with a model, or asks whether it may"
    if _loads_weights(called) and "gguf_file" not in options and options.get("use_safetensors") != "True":
        yield f"{called} without use_safetensors=True: reads weights of any format"
    if called == "EngineArgs" and options.get("load_format") != "'safetensors'":
        yield f"{called} without load_format='safetensors': reads weights of any format"
    if options.get("shell", "False") != "False":
        yield "shell=True: what is in an argument may be run"
    if called in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system"):
        yield f"{called}: runs text"


def _loads_a_model(called: str) -> bool:
    """Left out, transformers asks on the terminal; vLLM does not run code then, but that is only its default."""
    name = called.split(".")[-1]
    return name in ("from_pretrained", "EngineArgs") or (name == "from_config" and called.startswith("Auto"))


def _loads_weights(called: str) -> bool:
    owner, _, name = called.rpartition(".")
    return name == "from_pretrained" and owner not in ("AutoConfig", "AutoTokenizer")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(REPOSITORY).as_posix())
def test_a_file_keeps_the_promises(file: Path) -> None:
    name = file.relative_to(REPOSITORY).as_posix()
    assert list(violations(name, file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        'environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"',
        "weights = torch.load(path)",
        "weights = torch.load(path, weights_only=False)",
        "weights = torch.load(path, weights_only=trusted)",
        "rows = pickle.loads(body)",
        "from pickle import loads",
        "from torch import load",
        "import cloudpickle",
        "rows = np.load(path, allow_pickle=True)",
        "model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, trust_remote_code=True)",
        "model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True)",
        "model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)",
        "model = kind.from_pretrained(path, trust_remote_code=False, use_safetensors=wanted)",
        "model = AutoModelForCausalLM.from_config(config)",
        "config = AutoConfig.from_pretrained(path)",
        "tokenizer = AutoTokenizer.from_pretrained(path)",
        "engine = LLMEngine(model=path, trust_remote_code=config.trust)",
        "options = EngineArgs(model=path, load_format='safetensors')",
        "options = EngineArgs(model=path, trust_remote_code=False)",
        "subprocess.run(command, shell=True)",
        "values = yaml.load(text, Loader)",
        "value = eval(text)",
    ],
)
def test_breaking_a_promise_is_noticed(source: str) -> None:
    assert len(list(violations("actors/rollout.py", source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "weights = torch.load(path, map_location='cpu', weights_only=True)",
        "import pickle\ntry: ...\nexcept pickle.UnpicklingError: ...",
        "model = kind.from_pretrained(path, trust_remote_code=False, use_safetensors=True)",
        "model = AutoModelForCausalLM.from_pretrained(path, gguf_file=name, trust_remote_code=False)",
        "model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)",
        "tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)",
        "options = EngineArgs(model=path, trust_remote_code=False, load_format='safetensors')",
        "rows = np.load(path)",
        "values = yaml.safe_load_all(text)",
        "self.load(path)",
    ],
)
def test_keeping_the_promises_is_no_offence(source: str) -> None:
    assert list(violations("actors/rollout.py", source)) == []
