"""The benchmark of the image tokenizer runs, on a tiny shape, and its peers agree with us."""

import json
from pathlib import Path

import pytest

from benchmarks import tokenizer as benchmark


@pytest.mark.slow
def test_a_smoke_run_prints_a_row_for_every_library_and_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("diffusers")
    benchmark.main(1, "", "fp32", "1", False, True, tmp_path / "out.json")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads((tmp_path / "out.json").read_text())
    done = {(row["job"], row["library"]) for row in result["rows"]}
    coders = ("ours", "diffusers VQModel")
    assert done == {("encode", name) for name in benchmark.LIBRARIES} | {("decode", name) for name in coders}
    assert all(row["codes_as_fp32"] == 1 for row in result["rows"] if row["job"] == "encode")
    assert all(row["largest_difference_to_fp32"] < 1e-4 for row in result["rows"] if row["job"] == "decode")


def test_ours_counts_as_once_as_fast_as_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(benchmark, "LIBRARIES", {"ours": benchmark.ours})
    encode, decode = benchmark.compare("smoke", benchmark.SMOKE, 2, "fp32", 1, memory=False)
    assert encode["times_ours"] == decode["times_ours"] == 1 and encode["images_per_second"] > 0
    assert encode["codes_as_fp32"] == 1 and decode["largest_difference_to_fp32"] == 0
