"""Damaged token shards: skipped, counted and named, or refused with one clear error; nothing hangs."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from attempts import Child, answer, train
from cm3.files import sha256
from damage import flipped, images, judged, no_file, outcomes, strangers
from train.documents.shard_files import META, read_meta
from train.documents.shards import Shards
from train.language.config import LMConfig
from train.language.objective import Objective
from train.language.packing import PackedSequences, Steps
from train.runtime.config import override

pytestmark = pytest.mark.faults

SHARDS, FLIPS, METAS, MANIFESTS = 450, 300, 150, 40
GIGABYTE = 2**30


@pytest.fixture(scope="module")
def tallies(account: dict[str, Any]) -> dict[str, Any]:
    return account.setdefault("damage", {})


def damaged_shard(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Another content of a shard's file."""
    size = len(data)
    header = 8 + int.from_bytes(data[:8], "little")
    ways = ["truncated", "a flip", "flips", "flip in the header", "header length", "stranger", "arrays", "longer"]
    way = rng.choice(ways)
    if way == "truncated":
        return way, data[: rng.randrange(size)]
    if way == "a flip":
        return way, flipped(data, rng, 1)
    if way == "flips":
        return way, flipped(data, rng, rng.randrange(2, 200))
    if way == "flip in the header":
        return way, flipped(data, rng, rng.randrange(1, 4), 8, header)
    if way == "header length":
        length = rng.choice([0, 1, header - 7, header - 9, size, 2**31, 2**63, 2**64 - 1, rng.randrange(2**64)])
        return way, length.to_bytes(8, "little") + data[8:]
    if way == "longer":
        return way, data + rng.randbytes(rng.choice([1, 512, 2**20]))
    if way == "stranger":
        name, content = rng.choice(sorted((strangers(rng) | images(1)).items()))
        return f"{way}: {name}", content
    arrays = load(data)
    name = rng.choice(["ids", "offsets", "spans", "texts", "images"])
    array = arrays[name].copy()
    some = int(rng.randrange(array.size))
    changes = {
        "missing": None,
        "none": array[:0],
        "one less": array[:-1],
        "one more": np.concatenate([array, array[-1:]]),
        "floats": array.astype(np.float32),
        "truths": array.astype(bool),
        "64 bits": array.astype(np.int64),
        "flat": array.reshape(-1),
        "one more axis": array[None],
        "negative": np.where(np.arange(array.size).reshape(array.shape) == some, -3, array.astype(np.int64)),
        "huge": np.where(np.arange(array.size).reshape(array.shape) == some, 2**31 - 1, array.astype(np.int64)),
        "backwards": array[::-1].copy(),
        "nan": np.full(array.shape, np.nan, np.float16),
    }
    change = rng.choice(sorted(changes))
    arrays |= {name: changes[change]}
    return f"{name}: {change}", save({key: value for key, value in arrays.items() if value is not None})


def shard_cases(tokens: Path, folder: Path, cases: int, seed: int) -> dict[str, Any]:
    meta = read_meta(tokens)
    facts = meta["splits"]["train"]["shards"]

    def one(case: int, rng: random.Random) -> tuple[str, str, str]:
        here = folder / f"{case}"
        shutil.copytree(tokens, here)
        mode = rng.choice(["verified", "unverified", "of a wrong writer"])
        victims = rng.sample(facts, 1 if rng.random() < 0.8 else rng.randrange(2, 6))
        changed, kinds = json.loads(json.dumps(meta)), []
        for fact in victims:
            path = here / fact["name"]
            if rng.random() < 0.08:
                kinds.append(no_file(path, rng))
                continue
            kind, content = damaged_shard(path.read_bytes(), rng)
            kinds.append(kind)
            path.write_bytes(content)
            if mode == "of a wrong writer":
                entry = next(e for e in changed["splits"]["train"]["shards"] if e["name"] == fact["name"])
                entry["sha256"] = sha256(path)
        (here / META).write_text(json.dumps(changed))
        kind = f"{mode}, {', '.join(kinds)}"
        try:
            return kind, *fate(here, mode, [fact["name"] for fact in victims])
        except ValueError as error:
            clear = "more than max_bad = 15%" in str(error) and len(victims) > 1 and "train-0" in str(error)
            return kind, "refused" if clear else "other error", repr(error)
        except Exception as error:
            return kind, "other error", repr(error)
        finally:
            shutil.rmtree(here)

    folder.mkdir()
    return outcomes(cases, seed, one)


def fate(here: Path, mode: str, victims: list[str]) -> tuple[str, str]:
    """What becomes of a folder with damaged shards."""
    shards = Shards(here, verify=mode != "unverified", max_bad=0.15)
    known = {path.name for path in here.iterdir()}  # a name with another digit is of a shard that is missing
    if shards.bad.keys() & known - set(victims):
        return "other error", f"sound shards are bad: {shards.bad}"
    if not all(shards.bad.values()):
        return "unnamed", str(shards.bad)
    if mode == "verified" and shards.bad.keys() != set(victims):
        return "missed", str(shards.bad)
    lost = sum(shard["documents"] for shard in shards.meta["splits"]["train"]["shards"] if shard["name"] in shards.bad)
    if int((shards.lengths == 0).sum()) != lost:
        return "other error", "the count is wrong"
    vocab = shards.vocab()
    rows = PackedSequences(shards, vocab, Objective(first_codes=4, inpainting=0.3, answers_masked=0.5), 128, 0, 16)
    steps, seen, bad = Steps(rows, 2, 2), 0, 0
    while steps.position.documents < 1.2 * len(shards):
        step = steps[seen]
        seen, bad = seen + 1, bad + len(step.bad)
        assert seen < 200, "the epoch has no end"
        for batch in step.parts:
            assert 0 <= int(batch.ids.min()) and int(batch.ids.max()) < len(vocab), "an id outside the vocabulary"
            assert bool(batch.weights.isfinite().all()), "a weight that is not finite"
    return ("skipped" if shards.bad or bad else "harmless"), f"{shards.bad} {bad} documents"


def test_damaged_shards_are_skipped_counted_and_named(data: Path, tmp_path: Path, tallies: dict[str, Any]):
    result = answer(tmp_path, shard_cases, data / "tokens", tmp_path / "cases", SHARDS, 1)
    tallies["shards"] = judged(result, GIGABYTE // 4)
    assert not any(one.fate == "harmless" and one.kind.startswith("verified") for one in result["outcomes"])
    assert sum(one.fate == "skipped" for one in result["outcomes"]) > SHARDS / 2
    assert sum(one.fate == "refused" for one in result["outcomes"]) > SHARDS / 20


def one_flip_each(tokens: Path, folder: Path, count: int) -> int:
    """How many of so many single flips of a shard's bits are missed with verify."""
    shutil.copytree(tokens, folder)
    path, rng, missed = folder / "train-00003.safetensors", random.Random(5), 0
    sound = path.read_bytes()
    for _ in range(count):
        path.write_bytes(flipped(sound, rng, 1))
        missed += list(Shards(folder, max_bad=0.15).bad) != [path.name]
    return missed


def test_every_flip_of_a_verified_shard_is_found(data: Path, tmp_path: Path, tallies: dict[str, Any]):
    tallies["single flips"] = {
        "cases": FLIPS,
        "missed": answer(tmp_path, one_flip_each, data / "tokens", tmp_path / "flips", FLIPS),
    }
    assert tallies["single flips"]["missed"] == 0


def changed_meta(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Another meta.json."""
    meta: Any
    above: Any
    if rng.random() < 0.4:
        kind = rng.choice(["truncated", "a flip", "stranger"])
        if kind == "stranger":
            return rng.choice(sorted(strangers(rng).items()))
        return kind, data[: rng.randrange(len(data))] if kind == "truncated" else flipped(data, rng, 1)
    meta = json.loads(data)
    place, above, key = meta, meta, "splits"
    while isinstance(place, dict | list) and place:
        above, key = place, rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place = above[key]
        if rng.random() < 0.15:
            break
    values = [None, "many", -1, 0, 1.5, 10**18, [], {}, "../../etc/passwd", True, "\udcff", [1], float("nan")]
    value = rng.choice(values) if rng.random() < 0.8 else "gone"
    if value == "gone":
        del above[key]
    else:
        above[key] = value
    return f"{key} = {value!r}", json.dumps(meta).encode()


def meta_cases(tokens: Path, folder: Path, cases: int, seed: int) -> dict[str, Any]:
    shutil.copytree(tokens, folder)
    sound = (tokens / META).read_bytes()

    def one(case: int, rng: random.Random) -> tuple[str, str, str]:
        kind, content = changed_meta(sound, rng)
        (folder / META).write_bytes(content)
        try:
            what, why = fate(
                folder,
                "unverified" if case % 2 else "of a wrong writer",
                [f"train-{i:05}.safetensors" for i in range(10)],
            )
        except ValueError as error:
            what, why = "refused", str(error)
        except Exception as error:
            what, why = "other error", repr(error)
        return kind, what, why

    return outcomes(cases, seed, one)


def test_a_damaged_meta_is_refused_with_one_error(data: Path, tmp_path: Path, tallies: dict[str, Any]):
    result = answer(tmp_path, meta_cases, data / "tokens", tmp_path / "cases", METAS, 2)
    tallies["meta.json"] = judged(result, GIGABYTE // 4)


def manifest_cases(tokens: Path, folder: Path, cases: int, deep: bool) -> list[str]:
    shutil.copytree(tokens, folder)
    path, rng, wrong = folder / "train-00002.jsonl", random.Random(3), []
    sound = path.read_bytes()
    for _ in range(cases):
        others = strangers(rng)
        nested = others.pop("deep json")
        ways = [sound[: rng.randrange(len(sound))], flipped(sound, rng, 3), b"", rng.choice(list(others.values()))]
        path.write_bytes(nested if deep else rng.choice(ways))
        shards = Shards(folder)
        for number in range(12, 18):
            try:
                shards.sample(number)
            except ValueError:
                pass
            except Exception as error:
                wrong.append(repr(error)[:200])
    return wrong


def test_a_damaged_manifest_does_not_stop_the_training(data: Path, tmp_path: Path, tallies: dict[str, Any]):
    wrong = answer(tmp_path, manifest_cases, data / "tokens", tmp_path / "cases", MANIFESTS, False)
    tallies["manifests"] = {"cases": MANIFESTS, "other error": len(wrong)}
    assert not wrong, f"{len(wrong)}: {wrong[:5]}"


def test_a_manifest_of_a_hundred_thousand_brackets_is_damaged_too(data: Path, tmp_path: Path):
    assert not answer(tmp_path, manifest_cases, data / "tokens", tmp_path / "cases", 1, True)


@pytest.mark.parametrize(("bad", "verify"), [(1, True), (1, False), (4, True)])
def test_a_whole_run_names_damaged_shards_or_is_refused(
    config: LMConfig, data: Path, tmp_path: Path, bad: int, verify: bool
):
    shutil.copytree(data / "tokens", tmp_path / "tokens")
    for number in range(bad):
        path = tmp_path / "tokens" / f"train-{number:05}.safetensors"
        path.write_bytes(path.read_bytes()[:-60])
    config = override(config, {"data.folder": str(tmp_path / "tokens"), "steps": 3, "data.verify_hashes": verify})
    child = Child(tmp_path / "log", train, config, tmp_path / "out")
    code, said = child.wait(), (tmp_path / "log").read_text()
    if bad == 1:
        assert code == 0 and "left out: train-00000.safetensors: " in said
    else:
        assert code == 1 and said.splitlines()[-1].startswith("ValueError: ") and "more than max_bad = 10%" in said
        assert "train-00000.safetensors: damaged" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("damaged", [1, 30])
def test_a_run_counts_documents_with_impossible_ids_and_stops_above_the_threshold(
    config: LMConfig, data: Path, tmp_path: Path, damaged: int
):
    """In shards that are not verified."""
    shutil.copytree(data / "tokens", tmp_path / "tokens")
    for number in range(damaged):
        path = tmp_path / "tokens" / f"train-{number % 10:05}.safetensors"
        arrays = load(path.read_bytes())
        arrays["ids"][int(arrays["offsets"][number // 10]) + 1] = 65535
        path.write_bytes(save(arrays))
    config = override(
        config, {"data.folder": str(tmp_path / "tokens"), "data.verify_hashes": False, "checkpoint.keep": 1}
    )
    code = (child := Child(tmp_path / "log", train, config, tmp_path / "out")).wait()
    said = (tmp_path / "log").read_text()
    if damaged == 1:
        assert child.code == code == 0
        values = json.loads((tmp_path / "out" / "checkpoints" / "step-00000014" / "values.json").read_text())
        assert values[0]["run"]["bad_documents"] >= 1
    else:
        assert code == 1 and "documents are damaged, more than max_bad = 10%" in said.splitlines()[-1]


def test_a_damaged_text_tokenizer_is_refused_before_the_first_step(config: LMConfig, data: Path, tmp_path: Path):
    shutil.copytree(data / "tokens", tmp_path / "tokens")
    path = tmp_path / "tokens" / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-300])
    child = Child(
        tmp_path / "log",
        train,
        override(config, {"data.folder": str(tmp_path / "tokens"), "steps": 2}),
        tmp_path / "out",
    )
    assert child.wait() == 1 and (tmp_path / "log").read_text().splitlines()[-1].startswith("ValueError: ")
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_there_were_enough_cases(tallies: dict[str, Any]):
    if "images" not in tallies:
        pytest.skip("not all kinds were run")
    assert sum(tally["cases"] for tally in tallies.values()) >= 1000
