"""How the command starts: at once where no model is needed, quietly, and whatever it is connected to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import cm3
from checkout import ROOT

CHECKOUT = ROOT
HEAVY = ("torch", "transformers", "torchvision", "gradio", "numpy")
CPU_SECONDS = 1.0  # of slow machines too; with torch it is several


def run(code: str, *args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **env},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


REPORT = """
import json, resource, sys
from cm3.cli.main import main
try:
    main()
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    loaded = sorted({name.split(".")[0] for name in sys.modules})
    print(json.dumps([used.ru_utime + used.ru_stime, loaded]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--help"], 0),
        (["generate", "--help"], 0),
        (["--version"], 0),
        (["draw"], 2),
        (["generate"], 2),
        (["generate", "a", "-n", "0"], 2),
        (["infill", "no.png", "no.png"], 2),
        (["generate", "a", "-o", "no/a.png"], 2),
        (["edit", "no.png", "make it red"], 2),
    ],
    ids=str,
)
def test_help_and_wrong_arguments_are_answered_at_once(args: list[str], code: int, tmp_path: Path):
    done = run(REPORT, *args, cwd=tmp_path)
    seconds, loaded = json.loads(done.stderr.splitlines()[-1])
    assert done.returncode == code
    assert not set(HEAVY) & set(loaded)
    assert seconds < CPU_SECONDS


def test_info_looks_at_the_files_and_builds_no_model(tmp_path: Path, tiny_folder: Path):
    """The models of transformers take most of the time that a command takes to start."""
    done = run(REPORT.replace('.split(".")[0]', ""), "info", str(tiny_folder), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stderr.splitlines()[-1])[1]
    assert "cm3.model.memory" in loaded
    assert not {"transformers.modeling_utils", "torch._dynamo", "cm3.model.transformer"} & set(loaded)


def test_the_model_is_known_to_transformers_however_they_are_imported(tmp_path: Path):
    leader = "transformers.models.auto.modeling_auto"
    for order in (("cm3.hf.auto", "transformers"), ("transformers", "cm3.hf.auto"), (leader, "cm3.hf.auto")):
        code = (
            "\n".join(f"import {name}" for name in order)
            + """
import transformers
config = transformers.AutoConfig.for_model("cm3")
print(type(config).__module__, transformers.AutoModelForCausalLM._model_mapping[type(config)].__name__)
"""
        )
        assert run(code, cwd=tmp_path).stdout == "cm3.model.config CM3ForCausalLM\n"


def test_any_module_may_be_imported_first(tmp_path: Path):
    """No module needs another one to be imported before it."""
    code = """
import importlib, os, sys
import huggingface_hub, numpy, torch, transformers.modeling_utils  # which all need

for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(f"{name}: {error}", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
    paths = [*sorted((CHECKOUT / "cm3").rglob("*.py")), *sorted((CHECKOUT / "train").glob("*.py"))]
    names = [
        ".".join(path.relative_to(CHECKOUT).with_suffix("").parts) for path in paths if not path.stem.startswith("__")
    ]
    done = run(code, *names, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")


def test_nothing_brings_in_torchvision(tiny_folder: Path, tmp_path: Path):
    code = f"""
import sys
sys.modules["torchvision"] = None  # to import it is an error
from cm3 import CM3
CM3.from_pretrained({str(tiny_folder)!r}).generate("a", n=1)
import tokenizer_image, demo.app, train.lm, train.image_tokenizer, train.evaluate
"""
    done = run(code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_version_is_one(tmp_path: Path):
    assert run("from cm3.cli.main import main; main()", "--version", cwd=tmp_path).stdout == f"cm3 {cm3.__version__}\n"
    module = [sys.executable, "-m", "cm3", "--version"]
    assert subprocess.run(module, cwd=CHECKOUT, capture_output=True, text=True).stdout == f"cm3 {cm3.__version__}\n"


@pytest.mark.parametrize("module", ["torch", "transformers", "tokenizers"])
def test_ctrl_c_while_the_libraries_are_imported_is_one_line(module: str, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
class Key:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Key())
from cm3.cli.main import main
main()
"""
    done = run(code, "caption", "a.png", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "cm3: stopped\n")


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "| true"])
def test_output_that_nobody_reads_is_no_crash(closed: str, tmp_path: Path, tiny_folder: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    shell = f"{sys.executable} -m cm3 caption --model {tiny_folder} a.png {closed}"
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(shell, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_arabic_reaches_a_terminal_that_says_it_knows_ascii_only(tmp_path: Path, tiny_folder: Path):
    code = "from cm3.cli.main import main; main()"
    done = run(code, "tour", "تفاحة", "--model", str(tiny_folder), cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("prompt:   تفاحة\n")


def test_a_linked_output_stays_a_link(tmp_path: Path, tiny_folder: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "out.png").symlink_to("images/apple.png")
    done = run(
        "from cm3.cli.main import main; main()", "generate", "a", "-q", "--model", str(tiny_folder), cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out.png").is_symlink()
    assert Image.open(tmp_path / "images" / "apple.png").width == 512


def test_two_runs_with_one_output_do_not_share_the_unfinished_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from cm3.cli.files import save

    parts: set[Path] = set()
    whole = Image.Image.save

    def noted(image: Image.Image, path: Path, kind: str) -> None:
        parts.add(path)
        whole(image, path, kind)

    monkeypatch.setattr(Image.Image, "save", noted)
    for _ in range(2):
        save(Image.new("RGB", (4, 4)), tmp_path / "out.png")
    assert len(parts) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder is closed to root but /proc")
def test_an_output_that_cannot_be_written_is_noticed_before_the_drawing(tmp_path: Path):
    done = run(REPORT, "generate", "a", "-o", "/proc/out.png", cwd=tmp_path)
    *said, report = done.stderr.splitlines()
    assert done.returncode == 2
    assert len(said) == 1
    assert "/proc/out.png: cannot be written" in said[0]
    assert "torch" not in json.loads(report)[1]


def test_the_usage_line_says_that_there_may_be_several_images(tmp_path: Path):
    help = run("from cm3.cli.main import main; main()", "caption", "--help", cwd=tmp_path, COLUMNS="100").stdout
    assert "{SOURCE}... " in help
