"""The server under load: a closed loop of clients that each ask for the next picture when the last has come.

    python -m benchmarks.serve [--clients 1,8,32] [--seconds 15] [--out benchmarks/results/serve-NAME.json]

`cm3 serve` runs in a process of its own on this machine, which clients and server share. A client that is told to come
again (429) waits 50 ms. Prints a table, and one JSON line last.
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
from typing import Annotated, NamedTuple

import httpx
import numpy as np
import typer

from benchmarks.report import device_name, finish

PROMPTS = ("a red apple", "a cat", "a yellow taxi", "a pizza", "a guitar", "تفاحة حمراء")


class Answer(NamedTuple):
    status: int
    seconds: float


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """The server's address, while it runs."""
    command = [sys.executable, "-m", "cm3", "serve", "--port", "8765", *options]
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


async def client(http: httpx.AsyncClient, number: int, end: float, answers: list[Answer]) -> None:
    seed = number * 100_000
    while time.perf_counter() < end:
        body = {"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed}
        began = time.perf_counter()
        status = (await http.post("/v1/images/generations", json=body)).status_code
        answers.append(Answer(status, time.perf_counter() - began))
        seed += 1
        if status == 429:
            await asyncio.sleep(0.05)


async def load(address: str, clients: int, seconds: float) -> list[Answer]:
    answers: list[Answer] = []
    end = time.perf_counter() + seconds
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as http:
        await asyncio.gather(*(client(http, number, end, answers) for number in range(clients)))
    return answers


def first_preview(address: str) -> tuple[float, float]:
    """Seconds to the first half-done picture of a stream, and to the whole."""
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
    print("| clients | places | pictures/s | p50 s | p99 s | told to come again | p99 of that, ms |")
    print("|---|---|---|---|---|---|---|")
    loads = [(int(count), 64) for count in clients.split(",")] + [(overload, overload // 10)]
    for count, queue in loads:
        with serving("--model", model, "--queue", str(queue)) as address:
            asyncio.run(load(address, 1, 2.0))
            answers = asyncio.run(load(address, count, seconds))
            previews = [first_preview(address) for _ in range(7)] if count == 1 else []
        drawn = [answer.seconds for answer in answers if answer.status == 200]
        refused = [answer.seconds for answer in answers if answer.status == 429]
        others = [answer.status for answer in answers if answer.status not in (200, 429)]
        assert not others, f"the server answered {sorted(set(others))}"
        row = {
            "clients": count,
            "places": queue,
            "pictures_per_second": round(len(drawn) / seconds, 2),
            "p50": round(float(np.percentile(drawn, 50)), 3),
            "p99": round(float(np.percentile(drawn, 99)), 3),
            "refused": len(refused),
            "refused_p99": round(float(np.percentile(refused, 99)), 4) if refused else 0.0,
        }
        if previews:
            row["first_preview"] = round(statistics.median(first for first, _ in previews), 3)
            row["whole"] = round(statistics.median(whole for _, whole in previews), 3)
        rows.append(row)
        print(
            f"| {count} | {queue} | {row['pictures_per_second']:.1f} | {row['p50']:.2f} | {row['p99']:.2f} | "
            f"{len(refused)} | {1000 * row['refused_p99']:.0f} |",
            flush=True,
        )
    one = rows[0]
    if "first_preview" in one:
        print(f"\nstreamed alone: the first preview after {one['first_preview']} s, the picture after {one['whole']} s")
    finish("serve", out, model=model, loads=rows)


if __name__ == "__main__":
    typer.run(main)
