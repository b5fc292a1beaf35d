"""Import rules, read from the source with ast: who may import whom, and which libraries."""

import ast
import sys
from graphlib import TopologicalSorter
from itertools import groupby
from pathlib import Path

from checkout import ROOT
from tests.project.graph import imports, modules

# Package -> the packages that it may import, besides itself.
MAY_IMPORT = {
    "cm3.checks": "",
    "cm3.files": "",
    "cm3.tensors": "",
    "cm3.keywords": "cm3.engine",
    "cm3.model": "cm3.checks",
    "cm3.tokens": "cm3.checks cm3.tensors cm3.model",
    "cm3.engine": "cm3.checks cm3.tensors cm3.model cm3.tokens",
    "cm3.tasks": "cm3.checks cm3.tensors cm3.model cm3.tokens cm3.engine tokenizer_image",
    "cm3.hf": "cm3.files cm3.tensors cm3.model cm3.tokens cm3.tasks tokenizer_image",
    "cm3.pipeline": "cm3.checks cm3.keywords cm3.model cm3.tokens cm3.engine cm3.tasks cm3.hf tokenizer_image",
    "cm3.captioning": "cm3.engine.options cm3.files cm3.pipeline cm3.tasks.rated_text tokenizer_image",
    "cm3.serving": "cm3.checks cm3.engine cm3.tasks cm3.pipeline tokenizer_image",
    "cm3.cli": "cm3 tokenizer_image",
    "cm3.__main__": "cm3.cli",
    "tokenizer_image": "",
    "train.runtime": "cm3.files cm3.model",
    "train.images": "train.runtime cm3 tokenizer_image",
    "train.documents": "train.runtime train.images cm3 tokenizer_image",
    "train.vq": "train.runtime train.images tokenizer_image",
    "train.language": "train.runtime train.images train.documents cm3 tokenizer_image",
    "train.contrastive": "train.runtime train.documents cm3 tokenizer_image",
    "train.evaluation": "train.runtime train.images train.documents train.vq train.language cm3 tokenizer_image",
    "train.recipes": "train.runtime train.images train.documents train.language train.evaluation cm3 tokenizer_image",
    "train": "cm3 tokenizer_image",  # the commands
    "demo": "cm3 tokenizer_image",
    "benchmarks": "cm3 tokenizer_image",
}
TOKENIZER_LIBRARIES = {"torch", "numpy", "PIL", "safetensors", "huggingface_hub"}
LIBRARIES = TOKENIZER_LIBRARIES | {"transformers", "tokenizers", "typer", "rich"}
SERVER_LIBRARIES = {"fastapi", "starlette", "uvicorn", "pydantic", "anyio", "prometheus_client", "nudenet"}  # extras
MODULES = modules(ROOT)
OURS = {name.split(".")[0] for name in MODULES}


def package(module: str) -> str:
    """The longest entry of MAY_IMPORT that a module belongs to."""
    found = [name for name in MAY_IMPORT if f"{module}.".startswith(f"{name}.")]
    assert found, f"give {module} a line in MAY_IMPORT"
    return max(found, key=len)


def own_imports(module: str) -> set[str]:
    return set(imports(MODULES[module])) & MODULES.keys()


def foreign(path: Path) -> set[str]:
    """Imported libraries that are neither ours nor Python's own."""
    return {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - OURS


def test_packages_import_as_the_table_says():
    for module in MODULES:
        here = package(module)
        allowed = MAY_IMPORT[here].split()
        for other in own_imports(module):
            fine = package(other) == here or any(f"{other}.".startswith(f"{name}.") for name in allowed)
            assert fine or here == "train" and other.startswith("train."), f"{module} imports {other}"


def test_the_commands_of_train_do_not_import_each_other():
    commands = {module for module in MODULES if package(module) == "train"}
    for module in commands:
        assert not own_imports(module) & commands - {module}, module
        assert "def main(" in MODULES[module].read_text(encoding="utf-8"), f"{module} is no command"


def test_no_module_imports_itself_by_way_of_others():
    TopologicalSorter({module: own_imports(module) - {module} for module in MODULES}).prepare()


def test_each_package_imports_only_its_libraries():
    for module, path in MODULES.items():
        if module.startswith("tokenizer_image"):
            assert foreign(path) <= TOKENIZER_LIBRARIES, module
        elif module.startswith("cm3"):
            serving = module.startswith(("cm3.serving", "cm3.cli.serve"))
            assert foreign(path) <= LIBRARIES | (SERVER_LIBRARIES if serving else set()), module
        elif not module.startswith("demo"):
            assert "gradio" not in foreign(path), module
        assert not foreign(path) & {"torchvision", "torchaudio", "torchao"}, module


def test_the_engine_sees_no_images_and_no_strings():
    for module, path in MODULES.items():
        if package(module) == "cm3.engine":
            assert not {"PIL", "cm3.tokens.text_tokenizer", "cm3.tokens.document"} & set(imports(path)), module


def test_what_is_private_is_used_at_home():
    """No `model._thing` of ours from outside: what others need is public."""
    ours = {"model", "pipeline", "tiny", "emoji", "tokenizer", "engine"}
    for path in [*MODULES.values(), *sorted((ROOT / "tests").rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ours:
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                assert not private, f"{path}:{node.lineno}: {ast.unparse(node)}"


def test_a_class_name_stands_for_one_thing():
    # A recipe is a package of its own: train/emoji still makes the embedded model, train/recipes/emoji the next one.
    places = [
        (module.split(".")[0] if not module.startswith("train.recipes") else "train.recipes", node.name, module)
        for module, path in MODULES.items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    ]
    for key, found in groupby(sorted(places), key=lambda place: place[:2]):
        homes = [module for *_, module in found]
        assert len(homes) == 1 or key[0] == "benchmarks", f"{key[1]}: {homes}"


def test_no_file_is_longer_than_a_person_reads():
    for module, path in MODULES.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{module} has {lines} lines: split it"
