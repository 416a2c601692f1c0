"""What our own OpenAPI page promises, tried by a program that makes up requests."""

from __future__ import annotations

import subprocess
import sys

import pytest

from served import Served


@pytest.mark.slow
def test_no_request_breaks_the_server(served: Served) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed (pip install schemathesis)")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}/openapi.json"]
    command += ["-H", f"x-key: {served.key}", "--checks", "not_a_server_error", "--max-examples", "10"]
    # What answers only when a picture is done would have it wait for hundreds of them.
    for path in ("/v1/images/generations", "/v1/images/edits", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"):
        command += ["--exclude-path", path]
    done = subprocess.run([*command, "--no-color"], capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout[-5000:]
