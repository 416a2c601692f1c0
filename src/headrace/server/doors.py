"""Who may come in: keys, hashed and compared in constant time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Mapping

from headrace.server.refusals import Refused
from headrace.server.store import ACTIVE_LIMIT, LOCAL, PRIORITIES, Key, Store

# 16 MiB and some 40 ms for every guess (RFC 7914; N=2**14, r=8, p=1).
_SCRYPT = {"n": 2**14, "r": 8, "p": 1, "dklen": 32}
_FORM = re.compile(r"hr_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
# How long a secret that was right is known again without scrypt, and for how many of them.
_REMEMBERED_SECONDS = 300.0
_REMEMBERED = 4096

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def make_key(
    name: str, active_limit: int = ACTIVE_LIMIT, models: str = "", priority: str = "normal", balance: int | None = None
) -> tuple[str, Key]:
    """A new key: its secret, which is shown once and kept nowhere, and what is kept.

    balance: in thousandths of a credit, None for no limit.
    """
    key_id, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(32), secrets.token_bytes(16)
    kept = Key(
        id=key_id,
        name=name,
        salt=salt,
        hash=_hash(secret, salt),
        created=time.time(),
        revoked=None,
        active_limit=active_limit,
        models=models,
        priority=PRIORITIES[priority],
        balance=balance,
    )
    return f"hr_{key_id}_{secret}", kept


def presented(headers: Mapping[str, str]) -> str | None:
    """The key that a request shows, as one of the dialects has it; None where it shows none.

    x-key (Black Forest Labs), x-api-key (ComfyUI), Authorization as Bearer or Token (OpenAI, Replicate, Together) or
    Basic with the key as password (AUTOMATIC1111).
    """
    for name in ("x-key", "x-api-key"):
        if headers.get(name):
            return headers[name]
    scheme, _, value = headers.get("authorization", "").partition(" ")
    value = value.strip()
    if scheme.lower() in ("bearer", "token") and value:
        return value
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


class Doors:
    """Lets requests in by their key. open_without_key: a server on loopback that has no keys needs none."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._mac_key = secrets.token_bytes(32)
        self._remembered: dict[bytes, float] = {}
        self._one_at_a_time = threading.Lock()

    def admit(self, headers: Mapping[str, str]) -> Key:
        """The key of a request. Raises Refused (403) where it shows none, or one that opens nothing."""
        shown = presented(headers)
        if not self._store.has_keys():
            return self._local(headers)
        if shown is None:
            raise Refused(403, "Not authenticated; send your key in the header x-key.")
        match = _FORM.fullmatch(shown)
        key = None if match is None else self._store.key(match[1])
        if match is None or key is None or key.revoked is not None or not self._is_secret(key, match[2]):
            raise Refused(403, "This key opens nothing here; check it, or ask whoever runs this server.")
        return key

    def _local(self, headers: Mapping[str, str]) -> Key:
        # A page somewhere else could have its own name point to this machine, and would then be same-origin with it.
        host = headers.get("host", "")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
        if name not in LOOPBACK:
            raise Refused(403, "Without keys this server answers only as localhost; make one with headrace keys add.")
        local = self._store.key(LOCAL)
        assert local is not None
        return local

    def _is_secret(self, key: Key, secret: str) -> bool:
        mark = hmac.digest(self._mac_key, f"{key.id}:{secret}".encode(), "sha256")
        now = time.monotonic()
        if self._remembered.get(mark, 0.0) > now:
            return True
        with self._one_at_a_time:  # guesses cost whoever guesses, not everybody else's memory
            right = hmac.compare_digest(_hash(secret, key.salt), key.hash)
            if right:
                if len(self._remembered) >= _REMEMBERED:
                    self._remembered.clear()
                self._remembered[mark] = now + _REMEMBERED_SECONDS
        return right


def _hash(secret: str, salt: bytes) -> bytes:
    return hashlib.scrypt(secret.encode(), salt=salt, maxmem=2**26, **_SCRYPT)
