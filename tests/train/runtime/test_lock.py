"""Two runs in one folder."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from checkout import ROOT
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


def test_the_second_run_gets_one_line_that_names_the_first(holder: subprocess.Popen, tmp_path: Path):
    owner = f"in use by process {holder.pid} on {socket.gethostname()}: wait until that run has ended"
    with pytest.raises(ValueError, match=owner), locked(tmp_path / "out"):
        pass
    for command in ("lm", "image_tokenizer", "scorer"):
        done = subprocess.run(
            [sys.executable, "-m", f"train.{command}", "--out", str(tmp_path / "out")],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert owner in done.stderr
        assert len(done.stderr.splitlines()) == 1
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
