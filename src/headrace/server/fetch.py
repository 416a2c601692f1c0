"""Addresses that clients name, fetched without letting them reach into the network that the server stands in.

Every name is resolved once, all its addresses must be public, and the connection goes to exactly the address that was
checked, so that an answer that changes between (DNS rebinding) has no effect. Redirects are not followed for webhooks,
and checked one by one for pictures.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from headrace import __version__
from headrace.server.files import MAX_PICTURE_BYTES
from headrace.server.refusals import Refused

MAX_URL_CHARACTERS = 2083
MAX_REDIRECTS = 3
PICTURE_SECONDS = 15.0
_CHUNK = 65536


@dataclass(frozen=True)
class Answer:
    status: int
    location: str | None
    body: bytes


def picture_bytes(value: str, name: str, internal: bool) -> bytes:
    """The bytes of a picture given as base64, as a data URI or as a URL. Raises Refused (422).

    internal: whether addresses within the network may be fetched.
    """
    if re.match(r"https?://", value, re.IGNORECASE):
        return _fetch_picture(value, name, internal)
    if value[:5].lower() == "data:":
        head, _, value = value.partition(",")
        if not head.lower().endswith(";base64"):
            raise Refused(422, f"The {name} is a data URI that is not base64.")
    if len(value) > MAX_PICTURE_BYTES * 4 // 3 + 4096:
        raise Refused(422, f"The {name} has more than {MAX_PICTURE_BYTES // 2**20} MiB, the most that is taken.")
    try:
        data = base64.b64decode(re.sub(r"\s+", "", value), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(422, f"The {name} is neither base64, nor a data URI, nor an http(s) URL.") from error
    if not data:
        raise Refused(422, f"The {name} is empty.")
    return data


def check_url(url: str, name: str, internal: bool) -> None:
    """Raises Refused (422) for a URL that may not be asked for."""
    _addresses(_parts(url, name), name, internal)


def _parts(url: str, name: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Refused(422, f"The {name} is not a URL.") from error
    if len(url) > MAX_URL_CHARACTERS or not re.fullmatch(r"[!-~]+", url):
        raise Refused(422, f"The {name} is not a URL of at most {MAX_URL_CHARACTERS} printable characters.")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or port == 0:
        raise Refused(422, f"The {name} must be an http or https URL with a host and without user names.")
    return parts


def request(
    method: str,
    url: str,
    name: str,
    internal: bool,
    seconds: float,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    limit: int = _CHUNK,
) -> Answer:
    """One request to a checked address, without following redirects. Raises Refused (422) and OSError."""
    parts = _parts(url, name)
    address = _addresses(parts, name, internal)[0]
    until = time.monotonic() + seconds
    with closing(_connection(parts, address, seconds)) as connection:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent = {"User-Agent": f"headrace/{__version__}", "Accept-Encoding": "identity", **(headers or {})}
        try:
            connection.request(method, target, body=body, headers=sent)
            response = connection.getresponse()
            data = bytearray()
            while chunk := response.read1(_CHUNK):
                data += chunk
                if len(data) > limit:
                    raise Refused(422, f"The {name} answers with more than {limit} bytes.")
                if time.monotonic() > until:
                    raise TimeoutError("it takes too long")
        except http.client.HTTPException as error:
            raise OSError(f"it does not speak HTTP: {type(error).__name__}") from error
        return Answer(response.status, response.getheader("Location"), bytes(data))


def _fetch_picture(url: str, name: str, internal: bool) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        try:
            answer = request("GET", url, name, internal, PICTURE_SECONDS, limit=MAX_PICTURE_BYTES)
        except OSError as error:
            raise Refused(422, f"The {name} cannot be fetched from its URL ({type(error).__name__}).") from error
        if answer.status not in (301, 302, 303, 307, 308) or answer.location is None:
            break
        url = urljoin(url, answer.location)
    if answer.status != 200:
        raise Refused(422, f"The {name} cannot be fetched: its URL answers {answer.status}.")
    return answer.body


def _addresses(parts: SplitResult, name: str, internal: bool) -> list[str]:
    """What the host of a URL stands for now; refused where any of it is not a public address."""
    host = parts.hostname or ""
    try:
        found = socket.getaddrinfo(host, parts.port or 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused(422, f"The host of the {name} is not known.") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not internal and not all(_is_public(address) for address in addresses):
        raise Refused(422, f"The {name} leads to an address inside a network, which this server does not ask.")
    return addresses


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        # Addresses that carry one of IPv4 within them: mapped, 6to4, Teredo, NAT64.
        if parsed in ipaddress.ip_network("64:ff9b::/96"):
            return _is_public(str(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)))
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if inner is not None:
            return _is_public(str(inner))
    return parsed.is_global and not parsed.is_multicast


def _connection(parts: SplitResult, address: str, seconds: float) -> http.client.HTTPConnection:
    """To that address, in the name of the URL's host."""
    host = parts.hostname or ""
    if parts.scheme == "http":
        return _Checked(host, parts.port or 80, address, seconds)
    return _CheckedTls(host, parts.port or 443, address, seconds)


class _Checked(http.client.HTTPConnection):
    def __init__(self, host: str, port: int, address: str, seconds: float) -> None:
        super().__init__(host, port, timeout=seconds)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)


class _CheckedTls(http.client.HTTPSConnection):
    def __init__(self, host: str, port: int, address: str, seconds: float) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(host, port, timeout=seconds, context=self._tls)
        self._address = address

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), self.timeout)
        try:
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise
