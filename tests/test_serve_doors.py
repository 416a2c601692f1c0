"""What comes from outside: addresses, pictures, links, webhooks, words."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import io
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from headrace.errors import RequestError
from headrace.server import fetch
from headrace.server.dialects.bfl import parse_ratio
from headrace.server.fetch import check_url, picture_bytes, request
from headrace.server.files import Files, check_picture
from headrace.server.jobs import Ask, Jobs
from headrace.server.moderation import Blocklist, load_policies, read_blocklist
from headrace.server.refusals import Refused
from headrace.server.store import ModelFacts
from headrace.server.webhooks import deliver

SECRET = b"0" * 32
SPRITE = ModelFacts("sprite", "sprite", 8, 1.0, (128, 128), 10, True)


def png(width: int = 64, height: int = 64, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), "red" if mode == "RGB" else 1).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def inside() -> Iterator[str]:
    """A web server on loopback: /picture, /away (redirects inside), /large, /post."""

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if self.path == "/away" else 200)
            if self.path == "/away":
                self.send_header("Location", "/picture")
            self.end_headers()
            self.wfile.write(b"0" * (21 * 2**20) if self.path == "/large" else png())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.seen.append((dict(self.headers), body))  # type: ignore[attr-defined]
            self.send_response(int(self.path.removeprefix("/")))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "192.168.1.1",
        "172.16.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
        "[::1]",
        "[fe80::1]",
        "[fd00::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "2130706433",
        "0x7f000001",
        "127.1",
        "localhost",
    ],
)
def test_addresses_inside_a_network_are_not_asked(address: str) -> None:
    with pytest.raises(Refused, match=r"inside a network|not known"):
        check_url(f"http://{address}/", "input_image", internal=False)


@pytest.mark.parametrize(
    "url",
    ["ftp://example.com", "file:///etc/passwd", "http://", "http://a@example.com", "http://h:99999", "http://a b"],
)
def test_only_plain_web_addresses_are_taken(url: str) -> None:
    with pytest.raises(Refused):
        check_url(url, "webhook_url", internal=True)


def test_an_answer_that_changes_is_not_asked_twice(inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: public when it is checked, inside when it is connected to."""
    port = int(inside.rpartition(":")[2])
    answers = iter(["93.184.216.34", "127.0.0.1"])
    reached = []

    def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(address: tuple[str, int], *_: object) -> socket.socket:
        reached.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(fetch.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(fetch.socket, "create_connection", connect)
    with pytest.raises(ConnectionRefusedError):
        request("GET", f"http://rebinding.example:{port}/picture", "input_image", False, 5)
    assert reached == [("93.184.216.34", port)]


def test_redirects_inside_are_not_followed(inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(inside.rpartition(":")[2])
    true_resolve, true_connect = socket.getaddrinfo, socket.create_connection

    def resolve(host: str, at: int, *more: object, **named: object) -> list[tuple[object, ...]]:
        if host == "outside.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", at))]
        return true_resolve(host, at, *more, **named)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(fetch.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(
        fetch.socket, "create_connection", lambda address, *more: true_connect(("127.0.0.1", port), *more)
    )
    url = f"http://outside.example:{port}"
    assert picture_bytes(f"{url}/picture", "input_image", internal=False) == png()
    assert picture_bytes(f"{url}/away", "input_image", internal=False) == png()
    monkeypatch.setattr(fetch, "urljoin", lambda *_: f"{inside}/picture")
    with pytest.raises(Refused, match="inside a network"):
        picture_bytes(f"{url}/away", "input_image", internal=False)


def test_pictures_come_as_base64_data_uri_or_url(inside: str) -> None:
    plain = base64.b64encode(png()).decode()
    assert picture_bytes(plain, "input_image", False) == png()
    assert picture_bytes(f"data:image/png;base64,{plain}", "input_image", False) == png()
    assert picture_bytes(f"{inside}/away", "input_image", True) == png()
    for wrong in ("", "!", "data:image/png,abc", "data:", "aGk", "ünïcode"):
        with pytest.raises(Refused):
            picture_bytes(wrong, "input_image", False)
    with pytest.raises(Refused, match="more than"):
        picture_bytes(f"{inside}/large", "input_image", True)


def test_pictures_are_bounded_and_whole() -> None:
    assert check_picture(png(48, 32), "input_image") == (48, 32)
    for data in (b"", b"GIF89a", png()[:60], png(8, 8)):
        with pytest.raises(Refused):
            check_picture(data, "input_image")
    with pytest.raises(Refused, match="at most 4096x4096"):
        check_picture(png(5000, 4000, "1"), "input_image")


def test_links_end_after_ten_minutes_and_cannot_be_made_up(tmp_path: Path) -> None:
    files = Files(tmp_path, "http://host", SECRET)
    name = files.keep_result("a" * 36, 1, "PNG", b"picture")
    link = files.link(name, now=1000.0)
    values = dict(pair.split("=") for pair in link.partition("?")[2].split("&"))
    assert files.open_link(name, **values, now=1600.0) == b"picture"
    for changed in ({"now": 1601.0}, {"signature": "0" * 40}, {"expires": "9999999999"}, {"signature": "ü"}):
        with pytest.raises(Refused) as refused:
            files.open_link(name, **({**values, "now": 1000.0} | changed))  # type: ignore[arg-type]
        assert refused.value.status == 403
    files.remove("a" * 36)
    with pytest.raises(Refused) as gone:
        files.open_link(name, **values, now=1000.0)
    assert gone.value.status == 404


def test_webhooks_carry_both_signatures(inside: str) -> None:
    payload = {"id": "1", "status": "Ready"}
    with pytest.raises(Refused, match="inside a network"):
        deliver(f"{inside}/200", "secret", payload, internal=False)
    deliver(f"{inside}/200", "secret", payload, internal=True)
    with pytest.raises(OSError, match="503"):
        deliver(f"{inside}/503", "secret", payload, internal=True)
    deliver(f"{inside}/204", "geheimnis ü\n", payload, internal=True)
    deliver(f"{inside}/204", None, payload, internal=True)


def test_the_signature_is_an_hmac_of_the_body() -> None:
    from headrace.server.webhooks import signed_headers

    body = json.dumps({"id": "1"}).encode()
    headers = signed_headers(body, "secret")
    assert headers["X-Webhook-Secret"] == "secret"
    assert headers["X-BFL-Signature"] == "sha256=" + hmac.new(b"secret", body, hashlib.sha256).hexdigest()
    assert set(signed_headers(body, None)) == {"Content-Type"}


def test_words_are_found_as_words(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_text("bad thing # a comment\nworse | 2\n\n# nothing\n")
    policy = read_blocklist(path)
    assert policy.prompt("A BAD  thing!", 5)
    assert policy.prompt("\uff22ad thing", 5)  # full-width B
    assert not policy.prompt("bad things", 5)
    assert policy.prompt("worse", 2)
    assert not policy.prompt("worse", 3)
    path.write_text("word | lots")
    with pytest.raises(RequestError, match="Line 1"):
        read_blocklist(path)
    with pytest.raises(RequestError, match="MODULE:NAME"):
        load_policies(None, "nothing.here:policy")
    assert isinstance(load_policies(None, "headrace.server.moderation:Blocklist")[0], type)
    assert Blocklist([]).picture(Image.new("RGB", (1, 1)), 0) == []


@pytest.mark.parametrize(("text", "ratio"), [("16:9", (16, 9)), (" 3 : 4 ", (3, 4)), (None, None)])
def test_ratios_are_read(text: str | None, ratio: tuple[int, int] | None) -> None:
    assert parse_ratio(text) == ratio


@pytest.mark.parametrize("text", ["", "1", "0:1", "9:1", "-1:1", "a:b", "1:1:1"])
def test_ratios_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse_ratio(text)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=50, deadline=None)
@given(
    width=st.integers(0, 4096) | st.none(),
    height=st.integers(0, 4096) | st.none(),
    aspect=st.tuples(st.integers(1, 8), st.integers(1, 8)) | st.none(),
    references=st.lists(st.tuples(st.integers(16, 4096), st.integers(16, 4096)), max_size=3),
)
def test_every_size_is_one_that_can_be_made(
    width: int | None, height: int | None, aspect: tuple[int, int] | None, references: list[tuple[int, int]]
) -> None:
    ask = Ask("sprite", "a", width=width, height=height, aspect=aspect)
    try:
        made = Jobs._size(ask, SPRITE, references, None)
    except Refused:
        return
    assert all(side % 16 == 0 and side >= 64 for side in made)
    assert made[0] * made[1] <= 2048 * 2048
    if width and height:
        assert abs(made[0] - width) <= 8
        assert abs(made[1] - height) <= 8
    elif not (width or height or aspect or references):
        assert made == SPRITE.default_size
