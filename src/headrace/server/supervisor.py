"""Keeps one worker process alive: starts it, starts it again when it dies, ends it when it gives no sign of life."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from typing import IO

from headrace.server import logs
from headrace.server.settings import Settings

# A worker is silent while it imports torch, and where one call holds Python's lock; counted in seconds that this
# process itself was awake, so that a machine that was asleep loses nothing.
SILENT_TICKS = 120
LONGEST_PAUSE = 30.0

_log = logs.logger("supervisor")


class Supervisor:
    """`start`, then `stop` once."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Has the worker finish what it has begun, and ends it where that takes longer. Its jobs are not lost."""
        self._stopping.set()
        process = self._process
        if process is None or process.poll() is not None:
            return
        lifeline: IO[bytes] | None = process.stdin
        assert lifeline is not None
        with contextlib.suppress(OSError):
            lifeline.write(b"drain\n")
            lifeline.flush()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            _log.warning("the worker did not finish in time", extra={"seconds": seconds})
            process.kill()
            process.wait()
        with contextlib.suppress(OSError):
            lifeline.close()

    def _watch(self) -> None:
        pause = 0.5
        while not self._stopping.is_set():
            code, lived = self._run()
            if self._stopping.is_set():
                break
            pause = 0.5 if lived > 60 else min(2 * pause, LONGEST_PAUSE)
            _log.error("the worker ended", extra={"code": code, "again_after": pause})
            self._stopping.wait(pause)

    def _run(self) -> tuple[int, int]:
        """One life of the worker: its exit code, and for how many seconds it gave signs of life."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        arguments = json.dumps({"beats": writing, "name": self._name})
        process = subprocess.Popen(
            [sys.executable, "-m", "headrace.server.worker", arguments],
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            pass_fds=(writing,),
            start_new_session=True,  # Ctrl-C is for the server, which lets the worker finish
        )
        os.close(writing)
        assert process.stdin is not None
        self._process = process
        silent = lived = 0
        with open(reading, "rb", buffering=0) as beats:  # noqa: PTH123 (a descriptor, not a path)
            with contextlib.suppress(OSError):
                process.stdin.write(self._settings.to_json().encode() + b"\n")
                process.stdin.flush()
            while process.poll() is None:
                if select.select([beats], [], [], 1.0)[0]:
                    if not beats.read(4096):
                        break
                    silent, lived = 0, lived + 1
                    self._stopping.wait(0.9)
                else:
                    silent += 1
                if silent >= SILENT_TICKS:
                    _log.error("the worker is silent and will be ended", extra={"seconds": silent})
                    process.kill()
        code = process.wait()
        if not self._stopping.is_set():
            process.stdin.close()
        return code, lived
