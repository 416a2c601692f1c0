"""Nothing is lost: processes are killed in the middle of 200 jobs, and every job ends once, paid for once."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.server.store import Store, database_url
from served import QUICK, Served, cli, end, serving, start

JOBS = 200
COST = 5.0
BINARIES = Path("/usr/lib/postgresql")


def workers_of(served: Served) -> list[psutil.Process]:
    """The worker processes that a server has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [
            child
            for child in psutil.Process(served.process.pid).children()
            if "headrace.server.worker" in " ".join(child.cmdline())
        ]
    return []


def submit_all(served: list[Served], count: int) -> list[str]:
    """So many jobs, some of them impossible, whatever is killed meanwhile; ids of those that were accepted."""
    accepted = []
    for index in range(count):
        fields: dict[str, Any] = {"seed": index}
        while True:
            server = served[index % len(served)]
            try:
                accepted.append(server.submit(**fields)["id"])
                break
            except (OSError, AssertionError):
                time.sleep(0.2)
    return accepted


def wait_for_all(store: Store, ids: list[str], seconds: float) -> Counter[str]:
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(Exception):  # the database may be away
            found = store.progress(ids)
            states = Counter(state for state, _ in found.values())
            if not states["queued"] and not states["running"] and len(found) == len(ids):
                return states
        assert time.monotonic() < until, "jobs are still unfinished"
        time.sleep(0.5)


def check_books(store: Store, key_id: str, ids: list[str]) -> None:
    """Every job is Ready or Error, charged once, refunded exactly where it brought nothing; every file is there."""
    entries = Counter(reference.rpartition(":")[0] for _, reference, _, _ in store.entries(key_id))
    assert all(count == 1 for name, count in entries.items() if name != "grant")
    for job_id in ids:
        job = store.job(job_id)
        assert job is not None
        assert job.state in ("ready", "error")
        assert (job.result is None) == (job.state == "error")
        assert job.state == "ready" or job.reason
        assert entries[f"charge:{job_id}"] == 1
        assert entries[f"refund:{job_id}"] == (job.state == "error")
    key = store.key(key_id)
    assert key is not None
    ready = sum(store.job(job_id).state == "ready" for job_id in ids)  # type: ignore[union-attr]
    assert key.balance == round((JOBS * 10 * COST - ready * COST) * 1000)


@pytest.mark.slow
def test_kills_lose_nothing_on_sqlite(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path))
    key = cli("keys", "add", "me", "--active", "1000", "--credits", str(JOBS * 10 * COST), *data).strip()
    served = start("--lease", "5", data=tmp_path)
    served.key = key
    ids = submit_all([served], JOBS)
    for _ in range(2):  # the worker alone: its server starts it again
        time.sleep(random.uniform(1, 4))
        for worker in workers_of(served):
            worker.kill()
    time.sleep(5)
    os.kill(served.process.pid, signal.SIGKILL)  # and the whole server
    served.process.wait()
    with serving("--lease", "5", data=tmp_path) as again:
        again.key = key
        store = Store(database_url(None, tmp_path))
        states = wait_for_all(store, ids, 600)
        check_books(store, key.split("_")[1], ids)
        store.close()
        for worker in workers_of(again):
            assert worker.is_running()
    assert states["ready"] >= JOBS - 6


@pytest.mark.slow
def test_a_server_told_to_end_finishes_what_it_began(tmp_path: Path) -> None:
    served = start(data=tmp_path)
    ids = [served.submit(steps=12, width=128, height=128)["id"] for _ in range(3)]
    store = Store(database_url(None, tmp_path))
    while not any(step for _, step in store.progress(ids).values()):
        time.sleep(0.05)
    assert end(served) == 0
    states = Counter(state for state, _ in store.progress(ids).values())
    assert states == {"ready": 1, "queued": 2}
    assert all(store.job(job_id).losses == 0 for job_id in ids)  # type: ignore[union-attr]
    with serving(data=tmp_path):
        assert wait_for_all(store, ids, 120) == {"ready": 3}
    store.close()


@pytest.mark.slow
def test_a_worker_that_hangs_is_started_anew(tmp_path: Path) -> None:
    with serving("--lease", "5", "--stuck", "5", data=tmp_path) as served:
        submitted = served.submit(steps=50, width=512, height=512)
        store = Store(database_url(None, tmp_path))
        while not store.progress([submitted["id"]])[submitted["id"]][1]:
            time.sleep(0.05)
        [worker] = workers_of(served)
        worker.suspend()
        until = time.monotonic() + 60
        while store.job(submitted["id"]).state != "queued" and time.monotonic() < until:  # type: ignore[union-attr]
            time.sleep(0.2)
        assert store.job(submitted["id"]).state == "queued"  # type: ignore[union-attr]
        worker.resume()
        assert served.wait(submitted, 300)["status"] == "Ready"
        store.close()


@contextlib.contextmanager
def postgres() -> Iterator[tuple[str, Callable[[], None]]]:
    """A PostgreSQL of Debian's package on loopback: its URL, and a function that kills it and starts it again."""
    binaries = sorted(BINARIES.glob("*/bin/initdb"))
    if not binaries:
        pytest.skip("Debian's package postgresql is not installed")
    where = binaries[-1].parent
    with tempfile.TemporaryDirectory() as name, (Path(name) / "log").open("w") as log, socket.socket() as free:
        user: dict[str, Any] = {}
        if os.geteuid() == 0:  # it refuses to run as root
            account = pwd.getpwnam("postgres")
            user = {"user": account.pw_uid, "group": account.pw_gid}
            os.chown(name, account.pw_uid, account.pw_gid)
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        database = str(Path(name) / "db")
        made = [where / "initdb", "-D", database, "-A", "trust", "-U", "me"]
        subprocess.run(made, check=True, stdout=log, cwd=name, **user)
        options = ["-D", database, "-h", "127.0.0.1", "-p", port, "-k", "", "-c", "max_connections=200"]

        def run() -> subprocess.Popen[bytes]:
            process = subprocess.Popen([where / "postgres", *options], stdout=log, stderr=log, cwd=name, **user)
            ready = [where / "pg_isready", "-h", "127.0.0.1", "-p", port, "-U", "me", "-d", "postgres"]
            while subprocess.run(ready, stdout=subprocess.DEVNULL, check=False).returncode:
                assert process.poll() is None, (Path(name) / "log").read_text()
                time.sleep(0.1)
            return process

        running = run()

        def kill() -> None:
            nonlocal running
            # The postmaster alone: what it had started ends by itself, as after a crash.
            running.kill()
            running.wait()
            time.sleep(2)
            running = run()

        try:
            yield f"postgresql://me@127.0.0.1:{port}/postgres", kill
        finally:
            running.send_signal(signal.SIGINT)
            running.wait()


@pytest.mark.slow
def test_kills_lose_nothing_on_postgresql(tmp_path: Path) -> None:
    """Two API processes, three workers; a worker, an API process and the database are killed."""
    with postgres() as (url, kill_database), contextlib.ExitStack() as ending:
        where = ("--data", str(tmp_path), "--database", url)
        key = cli("keys", "add", "me", "--active", "1000", "--credits", str(JOBS * 10 * COST), *where).strip()
        store = Store(database_url(url, tmp_path))
        ending.callback(store.close)
        arguments = ("--database", url, "--lease", "5")
        workers = [start(*arguments, "--name", str(name), data=tmp_path, role="worker") for name in range(3)]
        apis = [start(*arguments, data=tmp_path, role="api") for _ in range(2)]
        for server in (*workers, *apis):
            ending.callback(lambda server=server: end(server) if server.process.poll() is None else None)
            server.key = key
        until = time.monotonic() + 300
        while len(store.workers(5)) < 3 and time.monotonic() < until:
            time.sleep(0.2)
        ids: list[str] = []
        submitting = threading.Thread(target=lambda: ids.extend(submit_all(apis[:1], JOBS)))
        submitting.start()
        time.sleep(4)
        os.kill(workers[0].process.pid, signal.SIGKILL)  # its machine is gone, and does not come back
        os.kill(apis[1].process.pid, signal.SIGKILL)
        time.sleep(4)
        kill_database()
        time.sleep(4)
        for worker in workers_of(workers[1]):
            worker.kill()
        submitting.join()
        states = wait_for_all(store, ids, 600)
        check_books(store, key.split("_")[1], ids)
        assert states["ready"] >= JOBS - 6


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """While the disk is full, requests are refused or their jobs end in an error with the reason; then all goes on."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "headrace", tmp_path], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        data = ("--data", str(tmp_path))
        key = cli("keys", "add", "me", "--active", "1000", "--credits", str(JOBS * 10 * COST), *data).strip()
        with serving("--no-marks", data=tmp_path) as served:
            served.key = key
            first = served.submit(seed=1)
            ids = [first["id"]]
            assert served.wait(first)["status"] == "Ready"
            full = tmp_path / "full"
            with full.open("wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(65536))
                    file.flush()
            statuses: Counter[int] = Counter()
            for seed in range(20):
                status, _, body = served.ask(
                    "POST", "/v1/flux-2-flex", QUICK | {"seed": seed, "width": 512, "height": 512}
                )
                statuses[status] += 1
                if status == 200:
                    ids.append(json.loads(body)["id"])
            assert set(statuses) <= {200, 503}
            time.sleep(3)
            full.unlink()
            last = served.submit(seed=2)
            ids.append(last["id"])
            assert served.wait(last)["status"] == "Ready"
            store = Store(database_url(None, tmp_path))
            wait_for_all(store, ids, 120)
            check_books(store, key.split("_")[1], ids)
            store.close()
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
