"""Hostile requests by the thousand: each is answered as it should be, nothing that was sent or lies here is repeated,
and memory stays. FAULTS_REQUESTS=100000 for more of them."""

import asyncio
import base64
import json
import logging
import os
import random
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from attempts import answer
from cm3 import CM3
from cm3.serving.admission import Limits
from cm3.serving.app import make_app
from cm3.serving.memory import return_freed_memory
from damage import bombs, flipped, images, judged, outcomes, resident, strangers

pytestmark = pytest.mark.faults

REQUESTS = int(os.environ.get("FAULTS_REQUESTS", "3000"))
KEY, CANARY = "sk-a-key-that-nobody-may-see", "quizzaciously"
ALLOWED = {200, 400, 401, 404, 413, 422}
HIDDEN = (KEY, CANARY, "/work", "/tmp", "/root", "/home", ".py", "site-packages", "Traceback")
PATHS = ("images/generations", "images/edits", "chat/completions")
NUMBERS: tuple[Any, ...] = (0, -1, 1, 2, 8, 9, 2**31, 2**63, -(2**64), 10**400, 0.5, 1e308, -1e-300, True, None)
WORDS = (
    "a red apple",
    "تفاحة حمراء",
    "<image>",
    "</image>",
    "<mask:0>",
    "<|endoftext|>",
    "<infill:0>",
    "../../../etc/passwd",
    "'; DROP TABLE pictures; --",
    "{{7*7}}",
    "${jndi:ldap://127.0.0.1/a}",
    "\x00\x01\x1b[2J",
    "\u202e\u2066\ufeff\u200d",
    "\U0001f34e" * 20,
    "e\u0301" * 50,
    "[5 5 50 50]",
    "a [9 9 1 1], b [1e99 nan inf -1]",
)
BULK = (
    b"[" * 50_000,
    b'{"a":' * 50_000,
    b'{"messages":[{"role":"user","content":[' + b"{}," * 400_000 + b"{}]}]}",
    b'{"messages":[{"role":"user","content":[' + b"{}," * 30_000 + b"{}]}]}",
    b'{"prompt":"a","n":1,"x":[' + b"[]," * 90_000 + b"1]}",
)


def words(rng: random.Random) -> str:
    """A prompt with the canary in it."""
    way = rng.random()
    if way < 0.5:
        text = " ".join(rng.choices(WORDS, k=rng.randrange(1, 4)))
    elif way < 0.9:
        text = "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x20, 0xD800)))) for _ in range(30))
    else:
        text = rng.choice(("a", "\n", "قط ", "<image>")) * rng.randrange(1, 200_000)
    return f"{CANARY} {text}" if rng.random() < 0.8 else text


def anything(rng: random.Random, depth: int = 3) -> Any:
    way = rng.randrange(6 if depth else 3)
    if way < 3:
        return (rng.choice(NUMBERS), words(rng)[:200], rng.choice(("", "auto", "url", "image", "text", "user")))[way]
    if way == 3:
        return [anything(rng, depth - 1) for _ in range(rng.randrange(4))]
    names = ("prompt", "n", "size", "type", "text", "content", "role", "image_url", "url", words(rng)[:20])
    return {rng.choice(names): anything(rng, depth - 1) for _ in range(rng.randrange(4))}


class Files(NamedTuple):
    """What is sent as an image, whole or damaged."""

    sound: list[bytes]
    strangers: list[bytes]
    bombs: list[bytes]


def image(rng: random.Random, files: Files) -> bytes:
    way, data = rng.random(), rng.choice(files.sound)
    if way < 0.2:
        return data
    if way < 0.4:
        return data[: rng.randrange(len(data))]
    if way < 0.7:
        return flipped(data, rng, rng.randrange(1, 40))
    if way < 0.8:
        return flipped(data, rng, rng.randrange(1, 6), 0, 64)
    if way < 0.95:
        return rng.choice(files.strangers)
    return rng.choice(files.bombs)


def url(rng: random.Random, content: bytes) -> str:
    coded = base64.b64encode(content).decode()
    head = rng.choice(
        ("data:image/png;base64,",) * 6 + ("data:,", "https://127.0.0.1:9/a.png#", "file:///etc/passwd", "")
    )
    return head + (coded if rng.random() < 0.9 else coded[: rng.randrange(len(coded) + 1)])


def damaged(rng: random.Random, body: dict[str, Any]) -> Any:
    """One or two of its fields changed, gone, or more than it should have."""
    for _ in range(rng.randrange(3)):
        name = rng.choice([*body, "size", "stream", "modalities", "temperature", "guidance", words(rng)[:20]])
        if rng.random() < 0.2:
            body.pop(name, None)
        else:
            body[name] = anything(rng)
    return body if rng.random() < 0.97 else anything(rng)


def text_of(rng: random.Random, body: Any) -> bytes:
    content = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
    way = rng.random()
    if way < 0.8:
        return content
    if way < 0.9 and content:
        return flipped(content, rng, min(len(content), rng.randrange(1, 9)))
    return content[: rng.randrange(len(content) + 1)] if way < 0.95 else rng.choice(BULK)


def request(rng: random.Random, files: Files) -> tuple[str, dict[str, Any]]:
    """Its path, and what httpx is to send."""
    path = rng.choice(PATHS)
    if path == "images/edits":
        data = {"prompt": words(rng)[:9000], "n": str(rng.choice(NUMBERS)), "seed": str(rng.choice(NUMBERS))}
        sent = {name: (words(rng)[:40], image(rng, files)) for name in ("image", "mask")}
        for some in (data, sent):
            for name in list(some):
                if rng.random() < 0.3:
                    del some[name]
        return path, {"data": data, "files": sent}
    body: dict[str, Any]
    if path == "images/generations":
        body = {"prompt": words(rng), "n": rng.choice((1, 1, 2)), "seed": rng.choice((1, None))}
    else:
        parts = [{"type": "text", "text": words(rng)}]
        many = rng.randrange(9, 100) if rng.random() < 0.1 else rng.randrange(3)
        shown = [url(rng, image(rng, files)) for _ in range(min(many, 3))]
        parts += [{"type": "image_url", "image_url": {"url": rng.choice(shown)}} for _ in range(many)]
        body = {"messages": [{"role": "user", "content": parts}]}
        if rng.random() < 0.3:
            body["modalities"] = ["image"]
    if rng.random() < 0.2:
        body["stream"] = True
    return path, {"content": text_of(rng, damaged(rng, body)), "headers": {"content-type": "application/json"}}


def hostile(folder: Path, cases: int, seed: int) -> dict[str, Any]:
    return_freed_memory()  # as cm3 serve does
    model = CM3.from_pretrained(folder, device="cpu")
    app = make_app(model, "tiny", Limits(body=2_000_000, seconds=20), api_keys=[KEY])
    kinds = (images(0), strangers(random.Random(0)), bombs())
    files, logged = Files(*(sorted(kind.values()) for kind in kinds)), list[str]()
    keep = logging.Handler()
    keep.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(keep)

    async def send(path: str, wanted: dict[str, Any], key: str) -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
            headers = wanted.pop("headers", {}) | {"Authorization": f"Bearer {key}"}
            return await client.post(f"/v1/{path}", headers=headers, **wanted)

    loop = asyncio.new_event_loop()

    def one(_: int, rng: random.Random) -> tuple[str, str, str]:
        path, wanted = request(rng, files)
        key = KEY if rng.random() < 0.95 else rng.choice(("", KEY[:-1], words(rng).encode().hex()[:50]))
        logged.clear()
        got = loop.run_until_complete(send(path, wanted, key))
        told = got.text if got.status_code != 200 else ""
        if got.headers["content-type"].startswith("text/event-stream"):
            told = "".join(line for line in got.text.splitlines() if '"error"' in line)
        if got.status_code not in ALLOWED or (got.status_code == 401) != (key != KEY) and got.status_code != 413:
            return path, "other error", f"{got.status_code}: {told[:200]} {logged}"
        if got.status_code != 200 and set(got.json()) != {"error"}:
            return path, "unnamed", told[:300]
        if leaked := [word for word in HIDDEN if word in told or any(word in line for line in logged)]:
            return path, "missed", f"{leaked}: {told[:300]} {logged}"
        if model.engine.active or app.state.server.admission.admitted:
            return path, "hang", f"rows {list(model.engine.active)}, places {app.state.server.admission.admitted}"
        return path, "harmless" if got.status_code == 200 else "refused", str(got.status_code)

    outcomes(min(cases, 500), seed + 1, one)  # what is loaded once is no leak
    before = resident()
    result = outcomes(cases, seed, one)
    loop.close()
    return result | {"resident": (before, resident())}


def test_hostile_requests_are_answered(tiny_folder: Path, tmp_path: Path, account: dict[str, Any]):
    result = answer(tmp_path, hostile, tiny_folder, REQUESTS, 7, limit=120 + REQUESTS / 10)
    before, after = (round(size / 2**20) for size in result["resident"])
    account["hostile requests"] = judged(result, 2**29) | {"resident before": before, "resident after": after}
    assert sum(one.fate == "harmless" for one in result["outcomes"]) > REQUESTS / 20
    assert sum(one.fate == "refused" for one in result["outcomes"]) > REQUESTS / 3
