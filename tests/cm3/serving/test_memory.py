"""What a request costs in memory: bodies at the limit, sent to a server in a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from checkout import ROOT
from serving import asking, data_url, image_bytes

STATUS = Path("/proc/self/status")
SERVER = """
import sys
from cm3 import CM3
from cm3.serving.app import make_app
from cm3.serving.memory import return_freed_memory
from serving import Live
return_freed_memory()
live = Live(make_app(CM3.from_pretrained(sys.argv[1], device="cpu"), "tiny"))
print(live.port, flush=True)
sys.stdin.read()
live.stop()
"""
MB = 10**6
LIMIT = 20 * MB - 1000  # of a body, about
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=x"}
PART = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
IN_CONTENT = b'{"messages":[{"role":"user","content":['


def filled(begin: bytes, unit: bytes, end: bytes = b"", size: int = LIMIT) -> bytes:
    return begin + unit * ((size - len(begin) - len(end)) // len(unit)) + end


@pytest.fixture(scope="module")
def server(tiny_folder: Path) -> Iterator[tuple[httpx.Client, Path]]:
    """A client, and the status of the server's process."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "helpers")))
    command = [sys.executable, "-c", SERVER, str(tiny_folder)]
    env, pipe = os.environ | {"PYTHONPATH": paths}, subprocess.PIPE
    with subprocess.Popen(command, text=True, env=env, stdin=pipe, stdout=pipe) as process:
        try:
            assert process.stdout is not None
            with httpx.Client(base_url=f"http://127.0.0.1:{process.stdout.readline().strip()}", timeout=60) as client:
                image = data_url(image_bytes(size=(2000, 2000)))
                for _ in range(2):  # what is loaded once
                    assert client.post("/v1/chat/completions", json=asking("What?", image)).status_code == 200
                yield client, STATUS.parents[1] / str(process.pid) / "status"
        finally:
            process.kill()


def megabytes(status: Path, name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", status.read_text())
    assert found is not None
    return int(found[1]) * 1024 / MB


@pytest.mark.skipif(not STATUS.is_file(), reason="needs /proc")
def test_a_body_at_the_limit_costs_little_memory_and_gives_it_back(server: tuple[httpx.Client, Path]):
    client, status = server
    image = data_url(image_bytes(size=(2000, 2000)))
    bodies = {
        "100 images": (422, "chat/completions", asking("What?", *[image] * 100)),
        "60 images": (422, "chat/completions", asking("What?", *[image] * 60)),
        "8 images": (200, "chat/completions", asking("What?", *[image] * 8)),
        "objects": (413, "chat/completions", filled(b'{"messages":[', b"{},", b"{}]}")),
        "objects, fewer": (422, "chat/completions", filled(b'{"messages":[', b"{},", b"{}]}", 140_000)),
        "parts": (413, "chat/completions", filled(IN_CONTENT, b"0,", b"0]}]}")),
        "parts, fewer": (422, "chat/completions", filled(IN_CONTENT, b"0,", b"0]}]}", 190_000)),
        "modalities": (422, "chat/completions", filled(b'{"modalities":[', b"0,", b"0]}", 190_000)),
        "unknown": (413, "images/generations", filled(b'{"prompt":"a","x":[', b"[],", b"0]}")),
        "letters": (422, "images/generations", filled(b'{"prompt":"', b"a", b'"}')),
        "wide letters": (422, "images/generations", filled('{"prompt":"\U0001f34e'.encode(), b"a", b'"}')),
        "escapes": (422, "images/generations", filled(b'{"prompt":"', b"\\u00e9", b'"}')),
        "digits": (400, "images/generations", filled(b'{"prompt":', b"1", b"}")),
        "files": (400, "images/edits", filled(b"", PART + b"a\r\n", b"--x--\r\n")),
        "a file": (422, "images/edits", filled(PART, b"a", b"\r\n--x--\r\n")),
    }
    before = megabytes(status, "VmRSS")
    for name, (code, path, body) in bodies.items():
        if isinstance(body, bytes):
            answer = client.post(f"/v1/{path}", content=body, headers=FORM if path == "images/edits" else JSON)
        else:
            answer = client.post(f"/v1/{path}", json=body)
        assert answer.status_code == code, (name, answer.text[:300])
        assert len(answer.text) < 1000
        assert megabytes(status, "VmHWM") - before < 250, name
    assert megabytes(status, "VmRSS") - before < 120
