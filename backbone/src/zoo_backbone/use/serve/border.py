"""The border of the server: requests that are refused before they are parsed, answers in JSON, and its end."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
from collections.abc import Iterable
from itertools import islice
from typing import Any

import uvicorn
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenizers_zoo.contract.validation import json_of
from tokenizers_zoo.errors import InvalidValueError

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: nothing comes from, or goes to, another host."""
HEADERS = [
    ("Content-Security-Policy", POLICY),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
]
"""Headers of every answer; uvicorn adds them."""
UPLOADS, JSON_BYTES, MOST_KEYS = "/api/uploads/", 1_000_000, 10_000
"""The path of uploads; the size of other bodies, which are JSON, and the keys of one of their objects."""


class Answer(JSONResponse):
    """An answer in JSON, with null for NaN and infinities, which JSON lacks."""

    def render(self, content: Any) -> bytes:
        return json.dumps(json.loads(json.dumps(content), parse_constant=lambda constant: None)).encode()


def refusal(status: int, errors: Iterable[str]) -> Answer:
    """Return the answer to a wrong request: "errors" has a line for each error, up to 20, and "error" joins them."""
    lines = [" ".join(error.split())[:500] for error in islice(errors, 20)]
    return Answer({"error": "; ".join(lines), "errors": lines}, status)


class Border:
    """ASGI middleware that refuses requests from other sites, with large bodies and with wrong JSON."""

    def __init__(self, app: ASGIApp, upload_bytes: int) -> None:
        self.app, self.upload_bytes = app, upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, and pass it on or refuse the request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, is_json = Headers(scope=scope), not scope["path"].startswith(UPLOADS)
        error = _origin_error(scope["method"], headers)
        body, limit, has_more = bytearray(), JSON_BYTES if is_json else self.upload_bytes, True
        while has_more:  # to its end, so that the answer arrives
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += b"" if error else message.get("body", b"")
            has_more = message.get("more_body", False)
            if len(body) > limit:
                error = 413, f"the body has more than {limit / 1e6:g} MB"
        if is_json and body and not error:
            error = await asyncio.to_thread(_json_error, headers.get("content-type", ""), bytes(body))
        if error:
            return await refusal(error[0], [error[1]])(scope, receive, send)
        messages: list[Message] = [{"type": "http.request", "body": bytes(body)}]

        async def receive_body() -> Message:
            return messages.pop() if messages else await receive()

        return await self.app(scope, receive_body, send)


def answered_hosts(address: str) -> list[str]:
    """Return the host names for which a server at this IP address answers requests, "*" for all.

    A web site could give its name a loopback address, and its scripts would then read the page (DNS rebinding), so at
    such an address only local names are answered.
    """
    ip = ipaddress.ip_address(address)
    own_name = f"[{address}]" if ip.version == 6 else address
    return ["localhost", "127.0.0.1", "[::1]", own_name] if ip.is_loopback else ["*"]


def _origin_error(method: str, headers: Headers) -> tuple[int, str] | None:
    """Return status and text for a request from another site that is not a GET."""
    host = headers.get("host", "").lower()
    is_same = headers.get("origin", f"//{host}").lower().partition("//")[2] == host
    site = headers.get("sec-fetch-site", "same-origin" if is_same else "cross-site")  # browsers set it, not scripts
    if method != "GET" and site not in ("same-origin", "none"):
        return 403, "requests from other web sites are refused; open the page of this server"
    return None


def _json_error(content_type: str, body: bytes) -> tuple[int, str] | None:
    """Return status and text for a body that is no JSON of finite numbers and valid texts, or has a key twice."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        return 415, "expected JSON, with the header Content-Type: application/json"
    try:
        json_of(body)  # counts levels and items before it parses
        json.dumps(json.loads(body, object_pairs_hook=_table), allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, InvalidValueError) as error:
        return 400, f"the body is not valid JSON: {error}"
    return None


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(table := dict(pairs)) < len(pairs) or len(pairs) > MOST_KEYS:
        raise ValueError(f"an object has a key twice, or more than {MOST_KEYS:,} keys")
    return table


class AbruptServer(uvicorn.Server):
    """A server that ends at a signal, and saves nothing. uvicorn would wait for uploads, watched jobs and threads."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        os._exit(128 + sig)
