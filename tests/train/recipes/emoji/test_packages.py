"""Pinned packages: taken where they lie, fetched through npm, and refused in one clear line."""

import base64
import subprocess
from pathlib import Path

import pytest

from fake_packages import pack
from train.recipes.emoji import packages as sources
from train.recipes.emoji.packages import EXTRA_STYLES, PACKAGES, STYLES, Package, Tarball, fetch


@pytest.fixture
def art(tmp_path: Path) -> Package:
    """A package whose tarball lies in `store`."""
    return pack(tmp_path / "store", "@art/set", {"icons.json": {"icons": {}}})


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """npm("shell script") becomes the only npm on PATH; it runs where the tarball belongs."""

    def install(script: str) -> None:
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / "npm").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")

    return install


@pytest.fixture
def no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def refused(package: Package, folder: Path, match: str) -> None:
    with pytest.raises(ValueError, match=match) as error:
        fetch(package, folder)
    assert "\n" not in str(error.value)


def test_every_package_is_pinned_by_a_whole_sha512():
    for package in PACKAGES:
        kind, _, digest = package.integrity.partition("-")
        assert kind == "sha512" and len(base64.b64decode(digest, validate=True)) == 64, package.name


def test_only_permissive_art_is_used():
    assert {style.licence for style in (*STYLES, *EXTRA_STYLES)} <= {"Apache-2.0", "CC-BY-4.0", "MIT"}
    assert all(style.author and style.licence_file for style in (*STYLES, *EXTRA_STYLES))


def test_the_two_fluent_styles_are_one_design():
    by_word = {style.word: style.design for style in STYLES}
    assert by_word["fluent flat"] == by_word["fluent 3d"]
    assert len(set(by_word.values())) == len(by_word) - 1


def test_a_tarball_that_lies_there_needs_no_npm(art: Package, tmp_path: Path, no_npm: None):
    assert fetch(art, tmp_path / "store") == tmp_path / "store" / "art-set-1.0.0.tgz"


def test_a_tarball_whose_hash_differs_is_refused(art: Package, tmp_path: Path):
    with (tmp_path / "store" / art.tarball).open("ab") as file:
        file.write(b"!")
    refused(art, tmp_path / "store", r"art-set-1\.0\.0\.tgz is not @art/set 1\.0\.0: sha512-.*delete it")


def test_without_npm_the_error_says_what_to_install(art: Package, tmp_path: Path, no_npm: None):
    refused(art, tmp_path / "other", "npm was not found: install Node.js, or .* --packages DIR")


def test_npm_packs_the_exact_version_where_it_is_wanted(art: Package, tmp_path: Path, npm):
    npm(f'echo "$@" > arguments; cp {tmp_path}/store/*.tgz .')
    path = fetch(art, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / art.tarball
    assert (path.parent / "arguments").read_text() == "pack --silent @art/set@1.0.0\n"


def test_npm_failing_is_told_with_its_last_line_and_leaves_no_half_tarball(art: Package, tmp_path: Path, npm):
    npm(f"echo half > {art.tarball}; echo 'npm error code E404\nnpm error not in this registry' >&2; exit 1")
    refused(art, tmp_path / "other", r"npm pack .*@art/set@1\.0\.0 failed \(npm error not in this registry\): is the ")
    assert list((tmp_path / "other").iterdir()) == []


def test_npm_that_writes_nothing_has_failed(art: Package, tmp_path: Path, npm):
    npm("exit 0")
    refused(art, tmp_path / "other", r"failed \(no output\)")


def test_npm_that_gives_another_tarball_is_refused(art: Package, tmp_path: Path, npm):
    npm(f"echo other > {art.tarball}")
    refused(art, tmp_path / "other", "is not @art/set")


def test_npm_that_never_ends_is_told(art: Package, tmp_path: Path, npm, monkeypatch: pytest.MonkeyPatch):
    def run(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    npm("exit 0")
    monkeypatch.setattr(sources.subprocess, "run", run)
    refused(art, tmp_path / "other", "did not finish in 10 minutes")


def test_a_folder_that_cannot_be_made_is_an_operating_system_error_of_one_line(art: Package, tmp_path: Path, npm):
    npm("exit 0")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as error:
        fetch(art, tmp_path / "file" / "packages")
    assert "\n" not in str(error.value)


def test_a_tarball_gives_the_wanted_files_in_the_languages_of_the_model(tmp_path: Path):
    package = pack(
        tmp_path,
        "mixed",
        {
            "icons.json": {"a": 1},
            "art/a.webp": b"image",
            "readme.md": b"words",
            "annotations/en/annotations.json": {},
            "annotations/ar/annotations.json": {},
            "annotations/fi/annotations.json": {},
        },
    )
    tarball = Tarball(tmp_path / package.tarball)
    assert tarball.names == {
        "icons.json",
        "art/a.webp",
        "annotations/en/annotations.json",
        "annotations/ar/annotations.json",
    }
    assert tarball.json("icons.json") == {"a": 1}
    assert tarball.read("art/a.webp") == b"image"
