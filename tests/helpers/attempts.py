"""Runs in processes of their own, forked from this one, where all is imported already, to be killed at any moment.

A process that has computed gradients must not be forked: whatever computes is called in a child. Every wait ends: a
child that takes too long is a failure, and its log says where it stood.
"""

import contextlib
import faulthandler
import hashlib
import json
import os
import pickle
import shutil
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from cm3.tokens.document import Image
from cm3.tokens.encoding import image_ids, join
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Vocab
from tokenizer_image import PRESETS, ImageTokenizer, VQModel
from train import lm
from train.documents.shards import NUM_SPECIAL, ShardWriter, finish
from train.language.config import LMConfig
from train.runtime.checkpoint_files import DAMAGED, Reader
from train.runtime.checkpoints import UNFINISHED, VALUES, Checkpoints

LIMIT = 240.0  # seconds; what takes longer hangs


class Child:
    """A function that is called in a process group of its own.

    Args:
        log: file for what it prints.
        function, arguments: to call.
        environment: variables to set.
    """

    def __init__(self, log: Path, function: Callable[..., Any], *arguments: Any, **environment: str):
        self.log, self.code = log, None
        self.pid = os.fork()
        if not self.pid:
            os.setpgid(0, 0)
            os._exit(called(log, environment, function, *arguments))
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(self.pid, self.pid)  # whoever comes first

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self, limit: float = LIMIT) -> int:
        """Its exit code. Raises TimeoutError, when it has been killed."""
        end = time.monotonic() + limit
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"still running after {limit:.0f} s:\n{self.log.read_text()[-6000:]}")
            time.sleep(0.002)
        return code

    def done(self, limit: float = LIMIT) -> None:
        """Wait for it to end well."""
        assert (code := self.wait(limit)) == 0, f"exit code {code}:\n{self.log.read_text()[-6000:]}"

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self, family: bool = True) -> bool:
        """kill -9, with all processes of its own if `family`. Returns whether it still ran."""
        if self.poll() is not None:
            return False
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if family else os.kill)(self.pid, signal.SIGKILL)
        end = time.monotonic() + 30
        while self.poll() is None:
            assert time.monotonic() < end, f"{self.pid} outlives kill -9"
            time.sleep(0.001)
        return self.code == -signal.SIGKILL

    def orphans(self) -> bool:
        """Whether a process of its group still runs."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True


def called(log: Path, environment: dict[str, str], function: Callable[..., Any], *arguments: Any) -> int:
    """In the child: the exit code."""
    file = log.open("a", buffering=1)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    os.environ |= environment
    warnings.showwarning = lambda message, kind, *_: print(f"{kind.__name__}: {message}", file=file)  # not pytest's
    warnings.simplefilter("always", UserWarning)
    faulthandler.enable(file)
    faulthandler.dump_traceback_later(0.9 * LIMIT, file=file)
    try:
        function(*arguments)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def answer(folder: Path, function: Callable[..., Any], *arguments: Any, limit: float = LIMIT) -> Any:
    """What a function returns that is called in a child."""
    path = folder / "answer.pickle"

    def keep() -> None:
        path.write_bytes(pickle.dumps(function(*arguments)))

    Child(folder / "answer.log", keep).done(limit)
    return pickle.loads(path.read_bytes())


class Snapshot(NamedTuple):
    """A checkpoint: its step, a hash of all its tensors, and its other values, without times and global generators.

    Nothing in a run draws from the global generators, and nobody seeds them.
    """

    step: int
    tensors: str
    values: str


class Truth(NamedTuple):
    """What an uninterrupted run came to: rows of its log, hash of its model, checkpoint of each step."""

    trail: list[tuple]
    model: str
    snapshots: dict[int, Snapshot]
    seconds: float


def snapshot(folder: Path) -> Snapshot | None:
    """The newest checkpoint in a folder, read through the API; None where there is none yet."""
    steps = [path for path in folder.glob("step-*") if not path.name.endswith((UNFINISHED, DAMAGED))]
    if not steps:
        return None
    newest = max(steps)
    index = Reader(newest).read_metadata().state_dict_metadata
    parts: dict[str, Any] = {name: {} for name in json.loads((newest / VALUES).read_text())[0]}
    for name, fact in index.items():
        assert isinstance(fact, TensorStorageMetadata)
        part, rest = name.split(".", 1)
        parts[part][rest] = torch.full(fact.size, 7, dtype=fact.properties.dtype)
    tensors = {f"{part}.{key}": tensor for part, held in parts.items() for key, tensor in held.items()}
    with Checkpoints(folder) as checkpoints, warnings.catch_warnings():
        warnings.filterwarnings("error", "the checkpoint .* is damaged")
        step = checkpoints.load(parts)
    assert step is not None and step == int(newest.name[5:]), f"loaded step {step}, but there is {newest.name}"
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(
            tensors[name].view(-1).view(torch.uint8).numpy().tobytes()
            if tensors[name].dim()
            else tensors[name].numpy().tobytes()
        )
    values = {name: part for name, part in parts.items() if name in ("run", "watch")}
    return Snapshot(step, digest.hexdigest(), json.dumps(values, sort_keys=True))


def snapshots(folder: Path) -> dict[int, Snapshot]:
    """Of every checkpoint in a folder, which is emptied on the way."""
    found = {}
    while one := snapshot(folder):
        found[one.step] = one
        shutil.rmtree(folder / f"step-{one.step:08}")
    return found


def trail(out: Path) -> list[tuple]:
    """Step, digest of its samples, losses, gradient and position of each row of the log."""
    lines = (out / "log.jsonl").read_text().splitlines() if (out / "log.jsonl").exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [
        (
            row["step"],
            row.get("digest"),
            row.get("loss"),
            row.get("grad_norm"),
            row.get("epoch"),
            row.get("held_out_loss"),
        )
        for row in rows
    ]


def model_hash(out: Path) -> str:
    """Of all files of a model; "" where it is not there."""
    files = sorted(path for path in (out / "model").rglob("*") if path.is_file())
    texts = [f"{path.relative_to(out)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest() if (out / "model" / "checksums.json").exists() else ""


def truth_of(out: Path, seconds: float) -> Truth:
    """Of a run that has ended."""
    return Truth(trail(out), model_hash(out), answer(out.parent, snapshots, out / "checkpoints"), seconds)


def write_data(folder: Path, shards: int = 10, each: int = 6, seed: int = 0) -> None:
    """A tiny image tokenizer in FOLDER/vq, and shards of random documents of 24 to 60 ids in FOLDER/tokens."""
    torch.manual_seed(0)
    image = ImageTokenizer(VQModel(PRESETS["tiny"]))
    image.save_pretrained(folder / "vq")
    text = TextTokenizer.train(["a red apple", "a blue car in the noto style", "What is this? a cat"], 300)
    vocab, rng = Vocab(NUM_SPECIAL, len(text), image.num_codes), np.random.default_rng(seed)
    for split, count in (("train", shards), ("held_out", 1)):
        for number in range(count):
            writer = ShardWriter(text, vocab)
            for i in range(each):
                words = rng.integers(vocab.first_text, vocab.first_code, rng.integers(3, 40)).tolist()
                writer.sample(name=f"{number}/{i}")
                spans = [(1 + len(words) // 2, 1 + len(words))] if i % 2 else []
                codes_of_image = image_ids(Image(torch.from_numpy(rng.integers(0, vocab.num_codes, (4, 4)))), vocab)
                writer.add_ids(join([words, codes_of_image], vocab).ids, spans)
            writer.save(folder / "tokens", split, number)
    finish(folder / "tokens", text, vocab, image, image_tokenizer_name=str(folder / "vq"))


def train(config: LMConfig, out: Path, *prepare: Callable[[], None]) -> None:
    """What a child does: the whole run."""
    for one in prepare:
        one()
    lm.train(config, out)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ranks(config: LMConfig, out: Path, world: int = 2) -> list[Child]:
    """The processes that torchrun would start."""
    port = str(free_port())
    return [
        Child(
            out.with_suffix(f".{rank}.log"),
            train,
            config,
            out,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world),
            LOCAL_WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            ACCELERATE_USE_CPU="true",
        )
        for rank in range(world)
    ]
