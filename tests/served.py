"""Servers that tests start: `headrace serve` in processes of their own, as people run it."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from click.testing import CliRunner

from conftest import command_environment
from headrace.cli.main import cli as commands

# Small and few steps: what is tested is the way of a job, not the picture.
QUICK = {"prompt": "a red apple on a blue background", "width": 64, "height": 64, "steps": 1}


class Served:
    """A running server. key: of a client that may do everything, empty where the server has no keys."""

    def __init__(self, url: str, data: Path, process: subprocess.Popen[str], key: str = "") -> None:
        self.url = url
        self.data = data
        self.process = process
        self.key = key

    def ask(
        self, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request: status, headers in lower case, body. A target that is a whole URL is asked as it is."""
        parts = urlsplit(target if target.startswith("http") else self.url + target)
        connection = http.client.HTTPConnection(parts.netloc, timeout=60)
        sent = {"x-key": self.key} if self.key else {}
        sent |= {"Content-Type": "application/json"} if body is not None else {}
        with contextlib.closing(connection):
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            data = body if isinstance(body, bytes) else json.dumps(body) if body is not None else None
            connection.request(method, path, body=data, headers=sent | (headers or {}))
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()

    def json(self, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """The JSON of an answer that must be well."""
        status, _, data = self.ask(method, target, body, headers)
        assert status < 300, (status, data)
        return json.loads(data)

    def submit(self, model: str = "flux-2-flex", **fields: Any) -> dict[str, Any]:
        answer = self.json("POST", f"/v1/{model}", QUICK | fields)
        assert isinstance(answer, dict)
        return answer

    def wait(self, submitted: dict[str, Any], seconds: float = 60) -> dict[str, Any]:
        """The task once it is no longer pending."""
        until = time.monotonic() + seconds
        while True:
            task: dict[str, Any] = self.json("GET", submitted["polling_url"])
            if task["status"] != "Pending":
                return task
            assert time.monotonic() < until, "the task is still pending"
            time.sleep(0.05)


def start(*arguments: str, data: Path, role: str = "all", wait: float = 300) -> Served:
    """`headrace serve` on a free port, once it answers and has a worker."""
    command = [sys.executable, "-m", "headrace", "serve", "--data", str(data), "--role", role, *arguments]
    if role != "worker":
        command += ["--port", "0"]
    log = (data / f"log-{time.monotonic_ns()}").open("w+")
    process = subprocess.Popen(command, env=command_environment(), stderr=log, text=True)
    served = Served("", data, process)
    until = time.monotonic() + wait
    log_path = Path(log.name)
    log.close()
    while not served.url:
        if process.poll() is not None or time.monotonic() > until:
            raise AssertionError(log_path.read_text())
        first = [line for line in log_path.read_text().splitlines() if line.startswith(("listening on ", "working"))]
        served.url = first[0].removeprefix("listening on ") if first else ""
        time.sleep(0.05)
    while role == "all":
        with contextlib.suppress(OSError):
            if served.ask("GET", "/readyz")[0] == 200:
                break
        if process.poll() is not None or time.monotonic() > until:
            raise AssertionError(log_path.read_text())
        time.sleep(0.1)
    return served


def end(served: Served, seconds: float = 60) -> int:
    """Ends a server in order, and returns its exit code."""
    served.process.send_signal(signal.SIGTERM)
    return served.process.wait(seconds)


@contextlib.contextmanager
def serving(*arguments: str, data: Path, role: str = "all") -> Iterator[Served]:
    served = start(*arguments, data=data, role=role)
    try:
        yield served
    finally:
        if served.process.poll() is None:
            end(served)


def cli(*arguments: str) -> str:
    """What a command prints; in this process, as it needs no other."""
    done = CliRunner().invoke(commands, arguments, catch_exceptions=False, standalone_mode=False)
    return done.stdout
