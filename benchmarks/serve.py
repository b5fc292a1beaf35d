"""The server under load: clients that each request the next image when they have received the last.

    python -m benchmarks.serve [--clients 1,8,32] [--seconds 15] [--out benchmarks/results/serve-NAME.json]

`cm3 serve` runs in its own process on the same machine as the clients. A client that is rejected with 429 waits for the
time of Retry-After, one second. Prints a table, and one JSON line at the end.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import httpx
import numpy as np
import typer

from benchmarks.report import device_name, finish

PROMPTS = ("a red apple", "a cat", "a yellow taxi", "a pizza", "a guitar", "تفاحة حمراء")
PORT = 8765

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Answer(NamedTuple):
    """A response: HTTP status, and seconds until its end."""

    status: int
    seconds: float


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """Run the server, and yield its address."""
    command = [sys.executable, "-m", "cm3", "serve", "--port", str(PORT), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        for _ in range(200):
            try:
                httpx.get(f"{address}/health")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        try:
            yield address
        finally:
            server.terminate()
            server.wait(60)


async def post(body: dict[str, Any], streams: Streams | None) -> tuple[int, float, Streams | None]:
    """Send a request without an HTTP library, which would take more time than the rejections that are measured.

    Returns:
        Status, Retry-After in seconds, and the connection if it stays open.
    """
    reader, writer = streams or await asyncio.open_connection("127.0.0.1", PORT)
    content = json.dumps(body).encode()
    head = "POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines[1:] if line)
    await reader.readexactly(int(fields["content-length"]))
    status, wait = int(lines[0].split()[1]), float(fields.get("retry-after", 0))
    if fields.get("connection") == "close":
        writer.close()
        return status, wait, None
    return status, wait, (reader, writer)


async def client(number: int, end: float, answers: list[Answer]) -> None:
    """One client, until `end`."""
    await asyncio.sleep(number % 100 / 100)  # spreads the clients, because rejected ones retry every second
    seed, streams = number * 100_000, None
    while time.perf_counter() < end:
        began = time.perf_counter()
        body = {"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed}
        status, wait, streams = await post(body, streams)
        answers.append(Answer(status, time.perf_counter() - began))
        seed += 1
        await asyncio.sleep(wait)
    if streams:
        streams[1].close()


async def load(clients: int, seconds: float) -> list[Answer]:
    """The responses to all clients."""
    answers: list[Answer] = []
    end = time.perf_counter() + seconds
    await asyncio.gather(*(client(number, end, answers) for number in range(clients)))
    return answers


def first_preview(address: str) -> tuple[float, float]:
    """Seconds to the first partial image of a stream, and to the finished image."""
    began, first = time.perf_counter(), 0.0
    body = {"prompt": "a red apple", "stream": True, "partial_images": 3}
    with httpx.stream("POST", f"{address}/v1/images/generations", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                first = first or time.perf_counter() - began
                if json.loads(line[6:])["type"].endswith("completed"):
                    break
    return first, time.perf_counter() - began


def main(
    clients: Annotated[str, typer.Option(help="how many at once")] = "1,8,32",
    seconds: Annotated[float, typer.Option(help="of each load")] = 15.0,
    model: Annotated[str, typer.Option(help="folder or name")] = "emoji",
    overload: Annotated[int, typer.Option(help="clients against a queue of a tenth")] = 160,
    out: Annotated[Path | None, typer.Option(help="JSON file")] = None,
) -> None:
    print(device_name())
    rows: list[dict[str, float]] = []
    print("| clients | queue | images/s | p50 s | p99 s | rejected (429) | p99 of that, ms |")
    print("|---|---|---|---|---|---|---|")
    loads = [(int(count), 64) for count in clients.split(",")] + [(overload, overload // 10)]
    for count, queue in loads:
        with serving("--model", model, "--queue", str(queue)) as address:
            asyncio.run(load(1, 2.0))
            answers = asyncio.run(load(count, seconds))
            previews = [first_preview(address) for _ in range(7)] if count == 1 else []
        drawn = [answer.seconds for answer in answers if answer.status == 200]
        rejected = [answer.seconds for answer in answers if answer.status == 429]
        others = [answer.status for answer in answers if answer.status not in (200, 429)]
        assert not others, f"the server answered {sorted(set(others))}"
        row = {
            "clients": count,
            "queue": queue,
            "images_per_second": round(len(drawn) / seconds, 2),
            "p50": round(float(np.percentile(drawn, 50)), 3),
            "p99": round(float(np.percentile(drawn, 99)), 3),
            "rejected": len(rejected),
            "rejected_p99": round(float(np.percentile(rejected, 99)), 4) if rejected else 0.0,
        }
        if previews:
            row["first_preview"] = round(statistics.median(first for first, _ in previews), 3)
            row["whole"] = round(statistics.median(whole for _, whole in previews), 3)
        rows.append(row)
        print(
            f"| {count} | {queue} | {row['images_per_second']:.1f} | {row['p50']:.2f} | {row['p99']:.2f} | "
            f"{len(rejected)} | {1000 * row['rejected_p99']:.0f} |",
            flush=True,
        )
    one = rows[0]
    if "first_preview" in one:
        print(f"\nstreamed alone: the first preview after {one['first_preview']} s, the image after {one['whole']} s")
    finish("serve", out, model=model, loads=rows)


if __name__ == "__main__":
    typer.run(main)
