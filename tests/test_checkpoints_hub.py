"""Downloads, against a hub of our own on this machine: what is fetched, and the one sentence when it is not."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
import torch

from checkpoint_files import write_json, write_pipeline, write_tensors

COMMIT = "c" * 40
OPEN = """
import json, sys
from headrace.checkpoints import open_checkpoint
from headrace.errors import HeadraceError
try:
    checkpoint = open_checkpoint(sys.argv[1])
except HeadraceError as error:
    print(json.dumps({"error": str(error), "kind": type(error).__name__}))
else:
    print(json.dumps({"name": checkpoint.name, "notes": checkpoint.notes, "licence": checkpoint.licence,
                      "variant": checkpoint.variant, "folder": str(checkpoint.transformer.source.parent)}))
"""


class Hub(ThreadingHTTPServer):
    """The few routes of the hub that a download uses. `repositories`: what each holds, or the status it answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories: dict[str, Path | str] = {}
        self.requested: list[str] = []
        self.ranges: list[str] = []
        self.breaks_off: set[str] = set()


class HubHandler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/\w+", path)
        if match:
            self._describe(match.group(1), match.group(2))
            return
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", path)
        if match:
            self._give(match.group(1), match.group(2), body)
            return
        self._send(404, b"{}")

    def _describe(self, name: str, what: str) -> None:
        held = self.server.repositories.get(name)
        if held is None:
            self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif held == "private":
            self._send(401, b'{"error": "Invalid username or password."}')
        elif held == "broken":
            self._send(500, b'{"error": "out of order"}')
        elif what == "revision":
            self._send(200, json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())
        else:
            self._send(200, json.dumps(self._tree(held)).encode())

    def _tree(self, held: Path | str) -> list[dict[str, object]]:
        if isinstance(held, str):
            return [{"type": "file", "path": "model_index.json", "size": 2, "oid": "0" * 40}]
        files = sorted(path for path in held.rglob("*") if path.is_file())
        return [
            {
                "type": "file",
                "path": str(path.relative_to(held)),
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in files
        ]

    def _give(self, name: str, path: str, body: bool) -> None:
        held = self.server.repositories.get(name)
        if held == "gated":
            self._send(403, b'{"error": "gated"}', {"X-Error-Code": "GatedRepo"})
            return
        assert isinstance(held, Path)
        content = (held / path).read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if not body:
            self._send(200, content, headers, body=False)
            return
        self.server.requested.append(path)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted:
            self.server.ranges.append(path)
            first = int(wanted.group(1))
            total = len(content)
            content = content[first:]
            self._send(206, content, headers | {"Content-Range": f"bytes {first}-{total - 1}/{total}"})
        elif path in self.server.breaks_off:
            self._send(200, content, headers, cut=len(content) // 2)
        else:
            self._send(200, content, headers)

    def _send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, *, body: bool = True, cut: int = 0
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content[:cut] if cut else content)
        if cut:
            self.close_connection = True


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def opened(model: str, home: Path, endpoint: str, code: str = OPEN, **environment: str) -> dict[str, str]:
    """What opening a model in a process of its own says; a process, because the hub's client reads these at import."""
    result = subprocess.run(
        [sys.executable, "-c", code, model],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ
        | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        | environment,
    )
    return json.loads(result.stdout)


FIND_LORA = """
import json, sys
from headrace.checkpoints.lora_choice import find_lora
from headrace.errors import HeadraceError
try:
    print(json.dumps({"file": str(find_lora(sys.argv[1]))}))
except HeadraceError as error:
    print(json.dumps({"error": str(error), "kind": type(error).__name__}))
"""


def endpoint(hub: Hub) -> str:
    return f"http://127.0.0.1:{hub.server_port}"


def test_a_download_fetches_what_is_needed_once(hub: Hub, tmp_path: Path) -> None:
    repository = write_pipeline(tmp_path / "repository", is_distilled=True)
    (repository / "README.md").write_text("---\nlicense: other\nlicense_name: my-licence\n---\n# A model\n")
    (repository / "flux-2-klein-4b.safetensors").write_bytes(b"the same transformer again")
    (repository / "text_encoder" / "pytorch_model.bin").write_bytes(b"a pickle")
    write_json(repository / "scheduler" / "scheduler_config.json", {"use_dynamic_shifting": True})
    hub.repositories["someone/their-model"] = repository
    first = opened("someone/their-model", tmp_path / "home", endpoint(hub))
    assert first["name"] == "someone/their-model"
    assert first["variant"] == "klein"
    assert first["licence"] == "my-licence"
    assert first["notes"] == [
        "someone/their-model is under the licence my-licence (see https://huggingface.co/someone/their-model)."
    ]
    assert {"transformer/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"} <= set(hub.requested)
    assert not {"flux-2-klein-4b.safetensors", "text_encoder/pytorch_model.bin"} & set(hub.requested)
    fetched = len(hub.requested)
    again = opened("someone/their-model", tmp_path / "home", endpoint(hub))
    assert again["notes"] == []
    assert len(hub.requested) == fetched
    offline = opened("someone/their-model", tmp_path / "home", endpoint(hub), HF_HUB_OFFLINE="1")
    assert offline["folder"] == first["folder"]


def test_the_licence_of_a_published_model_is_told(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["black-forest-labs/FLUX.2-dev"] = write_pipeline(tmp_path / "repository", "Flux2Pipeline")
    for name in ("dev", "black-forest-labs/FLUX.2-dev"):
        told = opened(name, tmp_path / name.replace("/", "-"), endpoint(hub))
        assert told["name"] == "dev"
        assert told["licence"] == "FLUX Non-Commercial License"
        assert "commercial use is not allowed" in told["notes"][0]


def test_a_download_that_breaks_off_is_resumed(hub: Hub, tmp_path: Path) -> None:
    repository = write_pipeline(tmp_path / "repository", is_distilled=True)
    # The hub's client writes 10 MiB at a time, and only what it wrote can be resumed.
    big = "transformer/later.safetensors"
    write_tensors(repository / big, {"x": torch.zeros(6 * 2**20)})
    hub.repositories["someone/model"] = repository
    hub.breaks_off = {big}
    assert opened("someone/model", tmp_path / "home", endpoint(hub))["variant"] == "klein"
    assert hub.ranges == [big]


def test_a_download_that_keeps_breaking_off(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["someone/model"] = write_pipeline(tmp_path / "repository", is_distilled=True)
    hub.breaks_off = {"vae/diffusion_pytorch_model.safetensors"}
    told = opened("someone/model", tmp_path / "home", endpoint(hub))
    assert told["kind"] == "HeadraceError"
    assert "broke off" in told["error"]
    assert "\n" not in told["error"]
    hub.breaks_off = set()
    assert opened("someone/model", tmp_path / "home", endpoint(hub))["variant"] == "klein"


@pytest.mark.parametrize(
    ("state", "kind", "sentence"),
    [
        ("missing", "RequestError", "someone/model is no folder here, and not on the hub or private there: check"),
        ("private", "RequestError", "The hub refuses someone/model: accept its licence at"),
        (
            "gated",
            "RequestError",
            "licence at https://huggingface.co/someone/model, then log in with `hf auth login`",
        ),
        ("broken", "HeadraceError", "cannot be reached"),
        ("closed", "HeadraceError", "cannot be reached"),
        ("offline", "HeadraceError", "HF_HUB_OFFLINE forbids"),
        ("empty", "RequestError", "it has no model_index.json"),
    ],
)
def test_what_cannot_be_fetched(hub: Hub, tmp_path: Path, state: str, kind: str, sentence: str) -> None:
    address, environment = endpoint(hub), {}
    if state in ("private", "gated", "broken"):
        hub.repositories["someone/model"] = state
    elif state == "empty":
        (tmp_path / "repository").mkdir()
        (tmp_path / "repository" / "flux.safetensors").write_bytes(b"")
        hub.repositories["someone/model"] = tmp_path / "repository"
    elif state == "closed":
        address = "http://127.0.0.1:9"
    elif state == "offline":
        environment = {"HF_HUB_OFFLINE": "1"}
    told = opened("someone/model", tmp_path / "home", address, **environment)
    assert told["kind"] == kind
    assert sentence in told["error"]
    assert "\n" not in told["error"]


def test_a_lora_is_fetched_alone_and_once(hub: Hub, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for name in ("pytorch_lora_weights.safetensors", "steps/100.safetensors"):
        write_tensors(repository / name, {"x.lora_A.weight": torch.zeros(2, 2)})
    write_json(repository / "adapter_config.json", {"lora_alpha": 3})
    (repository / "sample.png").write_bytes(b"a picture")
    hub.repositories["someone/style"] = repository
    for place, name in (
        ("someone/style", "pytorch_lora_weights.safetensors"),
        ("someone/style/steps/100.safetensors", "steps/100.safetensors"),
    ):
        found = opened(place, tmp_path / "home", endpoint(hub), FIND_LORA)["file"]
        assert found.endswith(name)
        assert Path(found).read_bytes() == (repository / name).read_bytes()
    assert (Path(found).parents[1] / "adapter_config.json").is_file()
    assert "sample.png" not in hub.requested
    before = list(hub.requested)
    assert opened("someone/style", tmp_path / "home", endpoint(hub), FIND_LORA, HF_HUB_OFFLINE="1")["file"]
    assert hub.requested == before


def test_what_a_repository_lacks_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for name in ("a.safetensors", "b.safetensors"):
        write_tensors(repository / name, {"x.lora_A.weight": torch.zeros(2, 2)})
    hub.repositories |= {"someone/styles": repository, "someone/closed": "gated"}
    home = tmp_path / "home"
    several = opened("someone/styles", home, endpoint(hub), FIND_LORA)
    assert several["kind"] == "RequestError"
    assert "(a.safetensors, b.safetensors): name one as someone/styles/FILE." in several["error"]
    absent = opened("someone/styles/c.safetensors", home, endpoint(hub), FIND_LORA)
    assert absent["error"] == "someone/styles has no file c.safetensors."
    assert "not on the hub" in opened("someone/none", home, endpoint(hub), FIND_LORA)["error"]
    offline = opened("someone/other", home, endpoint(hub), FIND_LORA, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids fetching it" in offline["error"]
