"""The command `cm3 serve`."""

import sys
from pathlib import Path

import pytest

from cm3.cli import main as cli


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--host", "0.0.0.0"], "on 0.0.0.0 others could use it too: give --api-key-file"),
        (["--api-key-file", "none.txt"], "none.txt: there is no such file"),
        (["--block-list", "none.txt"], "none.txt: there is no such file"),
        (["--api-key-file", "empty.txt"], "empty.txt: there are no keys"),
        (["--no-nudity"], "--no-nudity needs nudenet: pip install 'cm3leon[nudenet]'"),
    ],
)
def test_the_command_refuses_what_is_not_safe(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n")
    monkeypatch.setitem(sys.modules, "nudenet", None)
    monkeypatch.setattr("sys.argv", ["cm3", "serve", *args])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
