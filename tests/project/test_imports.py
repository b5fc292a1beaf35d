"""The import rules of the house, read from the source with ast."""

import ast
import sys
from pathlib import Path

import pytest

from checkout import ROOT
from tests.project.graph import imports

ROOMS = ("cm3", "tokenizer_image", "train", "demo", "benchmarks", "tests")
SCRIPTS = ("train", "demo", "benchmarks")

# cm3's modules from the bottom up: a module imports from lower floors, or from its own by going left.
FLOORS = (
    (
        "english",
        "safety",
        "known_words",
        "registration",
        "checks",
        "config",
        "vocab",
        "text",
        "cache",
        "plan",
        "linear",
        "templates",
        "options",
    ),
    ("memory", "diagnosis", "alphabet"),
    ("transformer", "scorer", "document", "spelling", "flat_tokenizer", "sampling", "guidance", "grammar", "chameleon"),
    ("model_files", "inpainting", "streaming", "masking", "request", "engine", "engine_thread", "prompts", "processor"),
    ("multimodal", "processing"),
    ("jobs", "completion", "ranking", "runner", "carried", "convert"),
    ("pipeline",),
    ("cli_files", "caption_sinks", "caption_tables", "captioning", "cli_model"),
    ("server_doors", "server_work", "server_connection", "server_http", "server_types", "server"),
    ("cli_draw", "cli_caption", "cli_serve", "cli"),
    ("__main__",),
)
SEE_PICTURES = (
    "model_files",
    "processor",
    "multimodal",
    "processing",
    "jobs",
    "runner",
    "pipeline",
    "convert",
    "captioning",
    "cli",
    "server",
    "server_types",
)
RANK = {name: (floor, place) for floor, names in enumerate(FLOORS) for place, name in enumerate(names)}
TOKENIZER_MAY_IMPORT = {"torch", "numpy", "PIL", "safetensors", "huggingface_hub", "tokenizer_image"}
SERVER_MAY_IMPORT = {"fastapi", "starlette", "uvicorn", "pydantic", "anyio", "prometheus_client"}  # the extra "serve"
CORE_MAY_IMPORT = TOKENIZER_MAY_IMPORT | {"cm3", "transformers", "tokenizers", "typer", "rich"}


def sources(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def foreign(path: Path) -> set[str]:
    """Imported packages that Python itself does not bring."""
    return packages(path) - set(sys.stdlib_module_names)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources("tokenizer_image"), ids=named)
def test_tokenizer_image_imports_only_its_few_libraries(path: Path):
    assert foreign(path) <= TOKENIZER_MAY_IMPORT


@pytest.mark.parametrize("path", sources("cm3"), ids=named)
def test_cm3_imports_only_the_core_dependencies(path: Path):
    extra = SERVER_MAY_IMPORT if "serve" in path.stem else {"nudenet"} if path.stem == "safety" else set()
    assert foreign(path) <= CORE_MAY_IMPORT | extra


@pytest.mark.parametrize("path", [p for p in sources("cm3") if p.stem != "__init__"], ids=named)
def test_cm3_modules_import_downwards(path: Path):
    below = {name.split(".")[1] for name in imports(path) if name.startswith("cm3.")}
    for name in below & set(RANK):
        assert RANK[name] < RANK[path.stem], f"{path.stem} imports {name}, which stands above it"
    assert path.stem in RANK, f"give cm3/{path.name} a place in FLOORS"


@pytest.mark.parametrize("path", sources("cm3"), ids=named)
def test_what_sees_ids_alone_knows_no_image_tokenizer(path: Path):
    assert "tokenizer_image" not in packages(path) or path.stem in SEE_PICTURES


def test_the_engine_sees_no_pictures_and_no_strings():
    assert not {"PIL", "cm3.text", "cm3.document", "cm3.spelling"} & set(imports(ROOT / "cm3" / "engine.py"))


@pytest.mark.parametrize("path", sources("cm3", "tokenizer_image", "train", "benchmarks"), ids=named)
def test_gradio_stays_in_the_demo(path: Path):
    assert "gradio" not in packages(path)


@pytest.mark.parametrize("path", sources(*ROOMS), ids=named)
def test_torchvision_and_torchao_are_never_imported(path: Path):
    assert not {"torchvision", "torchaudio", "torchao"} & packages(path)


@pytest.mark.parametrize("path", sources("cm3", "tokenizer_image", *SCRIPTS), ids=named)
def test_nothing_imports_the_scripts_but_themselves(path: Path):
    assert packages(path) & set(SCRIPTS) <= {path.relative_to(ROOT).parts[0]}


@pytest.mark.parametrize("path", sources(*ROOMS), ids=named)
def test_what_is_private_is_used_at_home(path: Path):
    """No `model._thing` of ours from outside: what others need is public."""
    found = [
        f"{ast.unparse(node)} in line {node.lineno}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and isinstance(node.value, ast.Name)
        and node.value.id in {"model", "pipeline", "tiny", "emoji", "tokenizer", "engine"}
    ]
    assert not found


# The folders of train/, what each may import besides itself; the commands may import all of them.
TRAIN = {
    "runtime": (),
    "pictures": ("runtime",),
    "documents": ("runtime", "pictures"),
    "vq": ("runtime", "pictures"),
    "language": ("runtime", "pictures", "documents"),
    "emoji": ("runtime", "pictures", "documents"),
    "scenes": ("runtime", "pictures", "documents", "language", "emoji"),
    "evaluation": ("runtime", "pictures", "documents", "language", "emoji", "scenes"),
    "recipes": ("runtime", "pictures", "documents", "language", "evaluation"),
}


@pytest.mark.parametrize("path", sorted((ROOT / "train").glob("*/**/*.py")), ids=named)
def test_the_folders_of_train_import_one_way(path: Path):
    folder = path.relative_to(ROOT / "train").parts[0]
    used = {name.split(".")[1] for name in imports(path) if name.startswith("train.")}
    assert used <= {folder, *TRAIN[folder]}


@pytest.mark.parametrize("path", sorted((ROOT / "train").glob("[!_]*.py")), ids=named)
def test_train_holds_commands_that_import_no_other(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    commands = {f"train.{other.stem}" for other in (ROOT / "train").glob("[!_]*.py")} - {f"train.{path.stem}"}
    assert not commands & set(imports(path))


@pytest.mark.parametrize("room", ["cm3", "tokenizer_image", "train", "train/recipes", "demo"])
def test_a_class_name_stands_for_one_thing(room: str):
    homes: dict[str, list[str]] = {}
    # A recipe is a package of its own: train/emoji still makes the embedded model, train/recipes/emoji the next one.
    apart = [] if room == "train/recipes" else sources("train/recipes")
    for path in set(sources(room)) - set(apart):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(named(path))
    assert not {name: found for name, found in homes.items() if len(found) > 1}


@pytest.mark.parametrize("path", sources("cm3", "tokenizer_image", "train", "demo"), ids=named)
def test_no_file_is_longer_than_a_person_reads(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{lines} lines: give it two rooms"
