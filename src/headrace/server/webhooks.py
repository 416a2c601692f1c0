"""Telling a client's server that its job has ended."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from headrace.server.fetch import request

# Pauses before the second, third and fourth try (black-forest-labs/skills, bfl-api).
PAUSES = (1, 5, 30)
ANSWER_SECONDS = 30.0


def signed_headers(body: bytes, secret: str | None) -> dict[str, str]:
    """Both headers by which Black Forest Labs' pages have a webhook recognised: the secret itself, and an HMAC with it.

    `X-Webhook-Secret` is what their SDK reads (src/bfl/_webhooks.py), `X-BFL-Signature: sha256=...` what their skills
    repository describes.
    """
    headers = {"Content-Type": "application/json"}
    if secret:
        signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        headers |= {"X-Webhook-Secret": secret, "X-BFL-Signature": f"sha256={signature}"}
    return headers


def deliver(url: str, secret: str | None, payload: Mapping[str, Any], internal: bool) -> None:
    """One try. Raises OSError where the answer is not 2xx within 30 seconds, Refused where the address is internal."""
    body = json.dumps(payload).encode()
    headers = signed_headers(body, secret)
    if not all(character.isprintable() and character.isascii() for value in headers.values() for character in value):
        del headers["X-Webhook-Secret"]  # a header cannot carry it; the signature still proves it
    answer = request("POST", url, "webhook_url", internal, ANSWER_SECONDS, body, headers)
    if not 200 <= answer.status < 300:
        raise OSError(f"the webhook answers {answer.status}")
