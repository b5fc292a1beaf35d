"""Two runs in one folder."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from checkout import ROOT
from train import image_tokenizer, lm, scorer
from train.runtime.lock import locked

CHECKOUT = ROOT
HOLD = """
import sys
from pathlib import Path
from train.runtime.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()  # until the test closes it
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:  # closes its stdin and waits for its end
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_the_second_run_gets_one_line_that_names_the_first(
    holder: subprocess.Popen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    owner = f"in use by process {holder.pid} on {socket.gethostname()}: wait until that run has ended"
    with pytest.raises(ValueError, match=owner), locked(tmp_path / "out"):
        pass
    for command in (lm, image_tokenizer, scorer):
        with pytest.raises(SystemExit) as end:
            command.main(out=tmp_path / "out")
        assert isinstance(end.value.code, str)  # is printed, and the exit code is 1
        assert owner in end.value.code
        assert len(end.value.code.splitlines()) == 1
        assert capsys.readouterr() == ("", "")
    assert holder.poll() is None  # it held the lock all the time
    assert os.listdir(tmp_path / "out") == ["run.lock"]


def test_a_run_that_was_killed_holds_nothing(holder: subprocess.Popen, tmp_path: Path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "out"):
        assert f"process {os.getpid()} on" in (tmp_path / "out" / "run.lock").read_text()
    assert os.listdir(tmp_path / "out") == []


def test_a_folder_that_was_made_for_the_lock_goes_with_it(tmp_path: Path):
    with locked(tmp_path / "new"):
        pass
    assert os.listdir(tmp_path) == []
