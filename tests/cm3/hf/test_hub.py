"""Models in repositories of the Hugging Face hub, written and read by huggingface_hub's own client."""

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import pytest

import hub
from checkout import ROOT
from cm3 import CM3

PUSHED, MORE, BARE, PATTERN, NONE = (f"someone/{name}" for name in ("pushed", "more", "bare", "pattern", "none"))
CLIENT = """
import json, sys
import huggingface_hub
from cm3 import CM3
from cm3.hf.model_folder import find_model

def found(name):
    try:
        return str(find_model(name))
    except ValueError as error:
        return str(error)

folder, pushed, *others = sys.argv[1:]
address = CM3.from_pretrained(folder).push_to_hub(pushed)
image = CM3.from_pretrained(pushed).generate("a red apple", seed=3)[0]
online = {name: found(name) for name in (pushed, *others)}
huggingface_hub.constants.HF_HUB_OFFLINE = True
print(json.dumps([address, image.tobytes().hex(), online, found(pushed)]))
"""


class Session(NamedTuple):
    """What a process did whose hub is the fake one. found: by id, the folder, or why there is none."""

    server: hub.Hub
    address: str
    image: str
    found: dict[str, str]
    offline: str


def stored(folder: str | Path) -> dict[str, bytes]:
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def session(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Session]:
    place, files = tmp_path_factory.mktemp("hub"), stored(tiny_folder)
    others = {"README.md": b"a model", "optimizer.pt": b"large", "run/log.json": b"{}"}
    bare = {name: data for name, data in files.items() if name != "checksums.json"}
    env = {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(place),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",  # large files go to the older store, LFS, which the fake hub has
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_TOKEN": "hf_a_token_of_the_tests",
    }
    with hub.running() as server:
        server.repos[MORE] = {**files, **others}
        server.repos[BARE] = {**bare, **others, "known_words.txt": b"apple\n", "scorer/config.json": b"{}"}
        server.repos[PATTERN] = {**files, "checksums.json": b'{"*": "0"}'}
        command = [sys.executable, "-c", CLIENT, str(tiny_folder), PUSHED, MORE, BARE, PATTERN, NONE]
        env["HF_ENDPOINT"] = server.url
        done = subprocess.run(command, env=env, cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        yield Session(server, *json.loads(done.stdout))


def test_a_model_that_was_pushed_to_the_hub_loads_by_its_id(session: Session, tiny: CM3, tiny_folder: Path):
    assert session.address == f"{session.server.url}/{PUSHED}"
    assert session.image == tiny.generate("a red apple", seed=3)[0].tobytes().hex()
    pushed = {name: data for name, data in session.server.repos[PUSHED].items() if name != ".gitattributes"}
    assert stored(session.found[PUSHED]) == pushed
    assert set(pushed) == set(stored(tiny_folder))
    assert {Path(name).suffix for name in pushed} >= {".json", ".safetensors", ".jinja", ".py"}


def test_what_was_fetched_once_is_found_offline(session: Session):
    assert session.offline == session.found[PUSHED]


def test_what_checksums_do_not_list_is_not_fetched(session: Session, tiny_folder: Path):
    assert stored(session.found[MORE]) == stored(tiny_folder)
    assert {name for repo, name in session.server.fetched if repo == MORE} == set(stored(tiny_folder))


def test_without_checksums_all_that_a_model_may_hold_is_fetched(session: Session, tiny_folder: Path):
    wanted = {*stored(tiny_folder), "known_words.txt", "scorer/config.json"} - {"checksums.json"}
    assert set(stored(session.found[BARE])) == wanted


def test_a_pattern_among_the_checksums_fetches_nothing_more(session: Session):
    assert set(stored(session.found[PATTERN])) == {"checksums.json", "config.json"}


def test_what_the_hub_does_not_have_is_one_clear_error(session: Session):
    assert session.found[NONE].startswith(f"there is no model '{NONE}': it is neither embedded")
    assert "cannot be fetched from the hub" in session.found[NONE]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b"])
def test_checksums_name_nothing_outside_the_folder(name: str, tiny_folder: Path, tmp_path: Path):
    for file in tiny_folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "checksums.json").write_text(json.dumps({name: "0" * 64}))
    with pytest.raises(ValueError, match="outside the folder"):
        CM3.from_pretrained(tmp_path)
