"""A prompt rewritten by a service: what is sent where, and every way in which an answer can be wrong."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from headrace.cli.main import main
from headrace.errors import HeadraceError, RequestError
from headrace.text.endpoint import MAX_ANSWER_BYTES, parse_endpoint, upsample_with

Respond = Callable[[BaseHTTPRequestHandler], None]
ASKED: dict[str, Any] = {"temperature": 0.15, "max_tokens": 512}


class Service:
    """A service on this machine that answers as it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.respond: Respond = lambda handler: say(handler, "a cat, in the rain")
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.requests.append((self.path, dict(self.headers), json.loads(body)))
                service.respond(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def say(handler: BaseHTTPRequestHandler, text: Any) -> None:
    send(handler, json.dumps({"choices": [{"message": {"content": text}}]}).encode())


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    threading.Thread(target=service.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield service
    service.server.shutdown()
    service.server.server_close()


def test_prompt_pictures_and_key_are_sent(service: Service) -> None:
    endpoint = parse_endpoint(f"{service.url}/v1#some/model", {"HEADRACE_UPSAMPLE_KEY": "secret"})
    picture = Image.new("RGB", (5, 4), "red")
    assert upsample_with(endpoint, "a cat", [picture], "Do.", **ASKED) == "a cat, in the rain"
    path, headers, body = service.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("some/model", 512, 0.15)
    assert body["messages"][0] == {"role": "system", "content": "Do."}
    sent, text = body["messages"][1]["content"]
    data = base64.b64decode(sent["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(data)).getpixel((0, 0)) == (255, 0, 0)
    assert text == {"type": "text", "text": "a cat"}
    upsample_with(parse_endpoint(service.url, {}), "a cat", [], "Do.", **ASKED)
    assert service.requests[1][2]["messages"][1] == {"role": "user", "content": "a cat"}
    assert not {"Authorization"} & service.requests[1][1].keys()
    assert "model" not in service.requests[1][2]


def test_keys_go_to_their_own_service_alone() -> None:
    keys = {"OPENROUTER_API_KEY": "a", "OPENAI_API_KEY": "b"}
    router = parse_endpoint("https://openrouter.ai/api/v1/", keys)
    assert (router.key, router.model) == ("a", "mistralai/pixtral-large-2411")
    assert router.url == "https://openrouter.ai/api/v1/chat/completions"
    assert parse_endpoint("https://api.openai.com/v1/chat/completions#gpt", keys).key == "b"
    assert parse_endpoint("https://example.org/v1", keys).key == ""
    with pytest.raises(RequestError, match="unencrypted"):
        parse_endpoint("http://example.org", {"HEADRACE_UPSAMPLE_KEY": "x"})
    with pytest.raises(RequestError, match="no key has"):
        parse_endpoint("https://example.org", {"HEADRACE_UPSAMPLE_KEY": "x\r\nHost: y"})


@pytest.mark.parametrize(
    "address", ["", "example.org/v1", "ftp://example.org", "http://", "http://[1", "https://a:b@c.de", "http://a b", "http://a:x"]
)  # fmt: skip
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(RequestError):
        parse_endpoint(address, {})


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        endpoint = parse_endpoint(text, {})
    except RequestError:
        return
    assert endpoint.url.startswith(("http://", "https://"))


WRONG: dict[str, tuple[Respond, str]] = {
    "an error": (lambda handler: send(handler, b"no such model", 404), "answers 404 .no such model."),
    "a redirect": (lambda handler: send(handler, b"", 307, Location="http://elsewhere/"), "redirects to 'http://elsewhere/'"),
    "a redirect as of old": (lambda handler: send(handler, b"", 302, Location="/x"), "redirects to '/x'"),
    "nonsense": (lambda handler: send(handler, b"<html>"), "no chat completion"),
    "another object": (lambda handler: send(handler, b'{"choices": []}'), "no chat completion"),
    "deep nesting": (lambda handler: send(handler, b"[" * 100_000), "no chat completion"),
    "no text": (lambda handler: say(handler, None), "without a text"),
    "an empty text": (lambda handler: say(handler, "  "), "without a text"),
    "a novel": (lambda handler: say(handler, "a" * 20_001), "20,001 characters"),
    "a flood": (lambda handler: flood(handler), "more than 1 MiB"),
    "a hang-up": (lambda handler: handler.connection.close(), "does not answer"),
}  # fmt: skip


def flood(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(100):
            handler.wfile.write(bytes(MAX_ANSWER_BYTES))
    except OSError:
        pass  # nobody reads on


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_answer_is_one_sentence(wrong: str, service: Service) -> None:
    service.respond, expected = WRONG[wrong]
    with pytest.raises(HeadraceError, match=expected):
        upsample_with(parse_endpoint(service.url, {}), "a cat", [], "Do.", **ASKED)
    assert len(service.requests) == 1


def test_who_hangs_or_drips_is_left(service: Service) -> None:
    done = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not done.wait(0.02):
            try:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            except OSError:
                return

    service.respond = drip
    started = time.monotonic()
    with pytest.raises(HeadraceError, match=r"longer than 0\.3 seconds"):
        upsample_with(parse_endpoint(service.url, {}), "a cat", [], "Do.", **ASKED, seconds=0.3)
    done.set()
    assert time.monotonic() - started < 60
    with pytest.raises(HeadraceError, match="does not answer"):
        upsample_with(parse_endpoint("http://127.0.0.1:1", {}), "a cat", [], "Do.", **ASKED)


def test_the_command_keeps_the_prompt_where_the_service_fails(
    service: Service, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headrace", "upsample", "a cat", "--upsample-with", service.url, *arguments])
        capfd.readouterr()
        return (main(), *capfd.readouterr())

    for name in ("HEADRACE_UPSAMPLE_KEY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    picture = tmp_path / "a.png"
    Image.new("RGB", (1000, 900)).save(picture)
    assert run("--ref", str(picture)) == (0, "a cat, in the rain\n", "")
    url = service.requests[0][2]["messages"][1]["content"][0]["image_url"]["url"]
    shown = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    assert shown.width * shown.height <= 768 * 768
    service.respond = WRONG["an error"][0]
    code, out, err = run()
    assert (code, out) == (0, "a cat\n")
    assert "answers 404" in err
    assert "The prompt stays as it was" in err
