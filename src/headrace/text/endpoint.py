"""A prompt rewritten elsewhere: by any service that answers OpenAI's chat completions. Without torch.

Only the address that the user names is asked: no redirect is followed. The key comes from the environment and goes
to that address alone, and never in the clear to another machine.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from headrace import __version__
from headrace.errors import HeadraceError, RequestError

if TYPE_CHECKING:
    from PIL import Image

MAX_ANSWER_BYTES = 2**20
MAX_PROMPT_CHARACTERS = 20_000
SECONDS_SILENT = 30.0
SECONDS_IN_ALL = 120.0

# The model and temperature that Black Forest Labs asks OpenRouter for (openrouter_api_client.py of flux2).
OPENROUTER, OPENROUTER_MODEL = "openrouter.ai", "mistralai/pixtral-large-2411"
OWN_KEY = "HEADRACE_UPSAMPLE_KEY"
KEYS: Mapping[str, str] = {OPENROUTER: "OPENROUTER_API_KEY", "api.openai.com": "OPENAI_API_KEY"}


@dataclass(frozen=True)
class Endpoint:
    """Where to ask. model: empty where the service is to choose. key: empty where there is none."""

    url: str
    host: str
    model: str
    key: str


def parse_endpoint(text: str, environment: Mapping[str, str] = os.environ) -> Endpoint:
    """`"https://openrouter.ai/api/v1#mistralai/pixtral-large-2411"` -> the endpoint, with its key.

    The address may be a service's base or that of its chat completions. The key is HEADRACE_UPSAMPLE_KEY's, or for
    OpenRouter and OpenAI that of their own variables.
    Raises RequestError for what is no address, and where a key would leave this machine unencrypted.
    """
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise RequestError(f"{text[:200]!r} is not an address ({error}).") from error
    if parts.scheme not in ("http", "https") or not host or not text.isprintable() or " " in text:
        raise RequestError(f"{text[:200]!r} is not an address; write it like https://openrouter.ai/api/v1#MODEL.")
    if parts.username is not None or parts.password is not None:
        raise RequestError(f"The address holds a password; put the key into the environment as {OWN_KEY}.")
    key = environment.get(OWN_KEY) or environment.get(KEYS.get(host, ""), "")
    if not (key.isascii() and key.isprintable()):
        raise RequestError(f"The key for {host} in the environment holds characters that no key has.")
    if key and parts.scheme == "http" and not _is_this_machine(host):
        raise RequestError(f"The key for {host} would be sent unencrypted; use https, or unset {OWN_KEY}.")
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions"
    url = parts._replace(path=path, fragment="").geturl()
    return Endpoint(url, host, parts.fragment or (OPENROUTER_MODEL if host == OPENROUTER else ""), key)


def upsample_with(
    endpoint: Endpoint,
    prompt: str,
    pictures: Sequence[Image.Image],
    system: str,
    *,
    temperature: float,
    max_tokens: int,
    seconds: float = SECONDS_IN_ALL,
) -> str:
    """The prompt as the endpoint's model rewrites it, looking at RGB pictures, which are sent as they are.

    Raises HeadraceError where it does not answer within `seconds`, or answers anything that is no text of at most
    20,000 characters within 1 MiB.
    """
    content: Any = prompt
    if pictures:
        content = [{"type": "image_url", "image_url": {"url": _data_url(picture)}} for picture in pictures]
        content.append({"type": "text", "text": prompt})
    body: dict[str, Any] = {
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    if endpoint.model:
        body["model"] = endpoint.model
    answer = _within(seconds, lambda: _post(endpoint, json.dumps(body).encode()), endpoint.host)
    return _text(answer, endpoint.host)


def _data_url(picture: Image.Image) -> str:
    from headrace.pictures import encode_picture

    return "data:image/png;base64," + base64.b64encode(encode_picture(picture, "PNG", {})).decode()


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Has a redirect end as an error, before anything is sent to another place."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def _post(endpoint: Endpoint, body: bytes) -> bytes:
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "User-Agent": f"headrace/{__version__}",
    }
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    request = urllib.request.Request(endpoint.url, body, headers, method="POST")
    opener = urllib.request.build_opener(_NoRedirects)
    try:
        with opener.open(request, timeout=SECONDS_SILENT) as response:
            data: bytes = response.read(MAX_ANSWER_BYTES + 1)
    except urllib.error.HTTPError as error:
        with error:
            if 300 <= error.code < 400:
                place = str(error.headers.get("Location"))[:200]
                raise HeadraceError(f"{endpoint.host} redirects to {place!r}; name that address itself.") from error
            said = error.read(2000).decode("utf-8", errors="replace").strip()
            raise HeadraceError(f"{endpoint.host} answers {error.code} ({said[:200] or error.reason}).") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise HeadraceError(f"{endpoint.host} does not answer ({reason}).") from error
    if len(data) > MAX_ANSWER_BYTES:
        raise HeadraceError(f"{endpoint.host} answers with more than {MAX_ANSWER_BYTES // 2**20} MiB.")
    return data


def _within(seconds: float, act: Callable[[], bytes], host: str) -> bytes:
    """What `act` gives, unless it takes longer: time-outs of sockets begin anew with every byte."""
    answers: queue.SimpleQueue[bytes | HeadraceError] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(act())
        except HeadraceError as error:
            answers.put(error)
        except Exception as error:  # whatever it was, the waiting thread must hear of it
            answers.put(HeadraceError(f"{host} could not be asked ({error})."))

    threading.Thread(target=run, name="headrace-endpoint", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise HeadraceError(f"{host} took longer than {seconds:g} seconds.") from None
    if isinstance(answer, HeadraceError):
        raise answer
    return answer


def _text(answer: bytes, host: str) -> str:
    """The text of the first choice."""
    try:
        text = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise HeadraceError(f"{host} answers something that is no chat completion.") from error
    if not isinstance(text, str) or not text.strip():
        raise HeadraceError(f"{host} answers without a text.")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise HeadraceError(f"{host} answers with {len(text):,} characters; a prompt has fewer.")
    return "".join(sign for sign in text.strip() if sign.isprintable() or sign in "\n\t")
