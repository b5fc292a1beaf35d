"""How much a block list stops, by disguise."""

import json
import subprocess
import sys
from pathlib import Path

from checkout import ROOT
from cm3.serving.safety import BlockList
from train.evaluation.suites.safety import DISGUISES, past


def test_a_disguise_that_is_seen_through_gets_nothing_past_and_another_language_everything():
    blocked = BlockList({"fruit": ["banana", "hot pepper"]})
    terms = ["banana", "hot pepper"]
    shares = {name: past(blocked, terms, disguise) for name, disguise in DISGUISES.items()}
    for name in ("as it is", "upper case", "random case", "letters that look alike", "invisible characters"):
        assert shares[name] == 0
    assert shares["a letter left out"] > 0.5
    assert past(blocked, ["موز"], DISGUISES["as it is"]) == 1
    assert past(BlockList({}), terms, DISGUISES["as it is"]) == 1


def test_the_command_prints_and_writes_the_shares(tmp_path: Path):
    (tmp_path / "list.txt").write_text("fruit: banana\n", encoding="utf-8")
    (tmp_path / "translations.txt").write_text("banana = موز\n", encoding="utf-8")
    command = [sys.executable, "-m", "train.evaluate", "safety", str(tmp_path / "list.txt")]
    more = ["--translations", str(tmp_path / "translations.txt"), "--out", str(tmp_path / "out.json")]
    done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "| in another language | 100.0% |" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["past"]["as it is"] == 0
