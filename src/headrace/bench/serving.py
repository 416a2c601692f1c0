"""How a server bears many clients: 200 that poll and look on, beside the same pictures made by the library alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from headrace.memory.process import resident_bytes

POLL_SECONDS = 1.0
PROMPT = "a red apple on a blue background"
# Marked pictures are counted apart: what marking costs is no matter of serving.
_SERVE = (sys.executable, "-m", "headrace", "serve", "--port", "0", "--no-marks")


@dataclass(frozen=True)
class Load:
    """What was measured. Seconds a picture in the library's own loop and through the server, both over all pictures.

    control_p50, control_p99: milliseconds of GET /healthz, /v1/credits and polls under load. memory: resident bytes of
    the API process after a tenth of the jobs, and after all of them.
    """

    jobs: int
    clients: int
    size: str
    steps: int
    library: float
    served: float
    overhead: float
    requests: int
    control_p50: float
    control_p99: float
    memory_early: int
    memory_late: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(jobs: int, clients: int, width: int, height: int, steps: int) -> Load:
    """Makes so many pictures twice, in a process of its own and through a server with so many clients."""
    library = _library(jobs, width, height, steps)
    with TemporaryDirectory() as folder:
        return asyncio.run(_measure_server(Path(folder), jobs, clients, width, height, steps, library))


def _library(jobs: int, width: int, height: int, steps: int) -> float:
    """Seconds a picture, in a loop that does as a worker must: generate, encode with the recipe, write."""
    code = (
        "import sys, time, json, tempfile, pathlib, headrace\n"
        "from headrace.provenance.metadata import encode_with_recipe\n"
        "from headrace.pictures import write_file\n"
        "jobs, width, height, steps, prompt = json.loads(sys.argv[1])\n"
        "pipeline, place = headrace.load('sprite'), pathlib.Path(tempfile.mkdtemp()) / 'a.jpeg'\n"
        "def make(seed):\n"
        "    picture = pipeline.generate(prompt, seed=seed, size=(width, height), steps=steps)\n"
        "    write_file(place, encode_with_recipe(picture.image, picture.recipe, 'JPEG'))\n"
        "make(0)\n"
        "began = time.perf_counter()\n"
        "for seed in range(jobs): make(seed)\n"
        "print((time.perf_counter() - began) / jobs)\n"
    )
    argument = json.dumps([jobs, width, height, steps, PROMPT])
    done = subprocess.run([sys.executable, "-c", code, argument], check=True, capture_output=True, text=True)
    return float(done.stdout)


async def _measure_server(
    folder: Path, jobs: int, clients: int, width: int, height: int, steps: int, library: float
) -> Load:
    async with _server(folder) as (host, port, process):
        fields = {"prompt": PROMPT, "width": width, "height": height, "steps": steps}
        warm = await _submit(host, port, fields | {"seed": 0})
        while (await _get(host, port, warm))["status"] == "Pending":
            await asyncio.sleep(0.05)
        times: list[float] = []
        early = 0
        done = asyncio.Event()
        lookers = [asyncio.create_task(_look_on(host, port, index, times, done)) for index in range(clients)]
        began = time.time()
        ends: list[float] = []
        pending: asyncio.Queue[str] = asyncio.Queue()

        async def submit() -> None:
            for seed in range(jobs):
                while pending.qsize() > 20:
                    await asyncio.sleep(0.02)
                await pending.put(await _submit(host, port, fields | {"seed": seed}))

        submitting = asyncio.create_task(submit())
        for index in range(jobs):
            url = await pending.get()
            while True:
                task = await _get(host, port, url)
                if task["status"] != "Pending":
                    break
                await asyncio.sleep(0.02)
            if task["status"] != "Ready":
                raise RuntimeError(str(task["details"]))
            ends.append(task["result"]["end_time"])
            if index == jobs // 10:
                early = _resident(process)
        await submitting
        late = _resident(process)
        done.set()
        await asyncio.gather(*lookers)
    served = (max(ends) - began) / jobs
    cuts = statistics.quantiles(times, n=100)
    return Load(
        jobs,
        clients,
        f"{width}x{height}",
        steps,
        library,
        served,
        served / library - 1,
        len(times),
        cuts[49] * 1000,
        cuts[98] * 1000,
        early,
        late,
    )


async def _look_on(host: str, port: int, index: int, times: list[float], done: asyncio.Event) -> None:
    """One client: asks once a second for what changes nothing."""
    targets = ("/healthz", "/v1/credits", "/v1/get_result?id=none", "/v1/jobs?limit=1")
    await asyncio.sleep(POLL_SECONDS * (index % 97) / 97)
    turn = index
    reader, writer = await asyncio.open_connection(host, port)
    while not done.is_set():
        began = time.perf_counter()
        await _exchange(reader, writer, host, "GET", targets[turn % len(targets)])
        times.append(time.perf_counter() - began)
        turn += 1
        await asyncio.sleep(POLL_SECONDS)
    writer.close()
    await writer.wait_closed()


async def _submit(host: str, port: int, fields: dict[str, Any]) -> str:
    url = (await _request(host, port, "POST", "/v1/flux-2-flex", fields))["polling_url"]
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


async def _get(host: str, port: int, target: str) -> Any:
    return await _request(host, port, "GET", target)


async def _request(host: str, port: int, method: str, target: str, body: Any = None) -> Any:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        return json.loads(await _exchange(reader, writer, host, method, target, body))
    finally:
        writer.close()
        await writer.wait_closed()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, method: str, target: str, body: Any = None
) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    )
    writer.write(head.encode() + b"\r\n\r\n" + data)
    await writer.drain()
    answer = await reader.readuntil(b"\r\n\r\n")
    lines = answer.decode("latin-1").lower().split("\r\n")
    length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
    content = await reader.readexactly(length)
    status = int(lines[0].split()[1])
    if status >= 400:
        raise RuntimeError(f"{method} {target.partition('?')[0]} answered {status}: {content[:200]!r}")
    return content


@asynccontextmanager
async def _server(folder: Path) -> AsyncIterator[tuple[str, int, int]]:
    """Host, port and process id of a server on loopback, once its worker is there."""
    process = await asyncio.create_subprocess_exec(*_SERVE, "--data", str(folder), stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    line = (await process.stderr.readline()).decode()
    reading = asyncio.create_task(_drop(process.stderr))
    where = urlsplit(line.removeprefix("listening on ").strip())
    host, port = where.hostname or "", where.port or 0
    try:
        for _ in range(1200):
            try:
                await _get(host, port, "/readyz")
                break
            except (RuntimeError, OSError):
                await asyncio.sleep(0.1)
        yield host, port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()
        await reading


async def _drop(stream: asyncio.StreamReader) -> None:
    while await stream.read(65536):
        pass


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resident_bytes()
