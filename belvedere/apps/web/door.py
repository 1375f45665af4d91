"""What every request passes before it reaches a room: who may come in, and what the browser may do with an answer.

- With a user and a password, nothing is served without them (HTTP Basic authentication, RFC 7617).
- Without, only requests to a name of this machine: another page cannot have its own name lead here (DNS rebinding).
- A request that another page sends (its ``Origin`` is not the host asked) is refused, and so is a path that holds an
  address of elsewhere: Gradio would fetch it for whoever asks.
- Answers may load nothing from elsewhere, are shown as what they are said to be, and files can run nothing.
"""

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_PAGE = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_FILE = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; media-src 'self'"
_FILES = ("/gradio_api/file", "/gradio_api/stream/", "/file", "/studio/")
"""How the paths of files begin: uploads, results, whatever Gradio hands out."""
OTHER_PAGE = "this request comes from another page; a proxy before the studio must pass the header Host on as it came"
_SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "x-frame-options": "DENY"}


class Door:
    """ASGI middleware around ``app``; ``auth``: the user and password asked for, None for anybody on this machine."""

    def __init__(self, app: App, auth: tuple[str, str] | None):
        self.app, self.auth = app, auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with 401 or 403."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {key.lower(): value.decode("latin-1") for key, value in scope["headers"]}
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif self.auth is not None and not _knows(headers.get(b"authorization", ""), self.auth):
            await refuse(send, 401, "a user and a password are needed", {"www-authenticate": 'Basic realm="Belvedere"'})
        elif not self._is_ours(headers):
            await refuse(send, 403, OTHER_PAGE)
        elif "://" in scope["path"]:
            await refuse(send, 403, "no address of elsewhere is opened here")
        else:
            await self.app(scope, receive, _guarded(send, scope["path"]))

    def _is_ours(self, headers: dict[bytes, str]) -> bool:
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        asked, sender = _parts(f"//{host}"), _parts(origin or "")
        if self.auth is None and not (asked and is_loopback(asked.hostname or "")):
            return False
        return origin is None or (sender is not None and sender.netloc == host)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine alone: ``localhost``, or an address that cannot lead anywhere else."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parts(address: str) -> SplitResult | None:
    """Return the parts of an address; None for what is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return None


def _knows(header: str, auth: tuple[str, str]) -> bool:
    scheme, _, code = header.partition(" ")
    try:
        given = base64.b64decode(code.strip(), validate=True)
    except (binascii.Error, ValueError):
        return False
    return scheme.lower() == "basic" and hmac.compare_digest(given, ":".join(auth).encode())


def _guarded(send: Send, path: str) -> Send:
    extra = {**_SAFE, "content-security-policy": _FILE if path.startswith(_FILES) else _PAGE}

    async def sent(message: Scope) -> None:
        if message["type"] == "http.response.start":
            kept = [(key, value) for key, value in message.get("headers", []) if key.decode().lower() not in extra]
            message["headers"] = [*kept, *((key.encode(), value.encode()) for key, value in extra.items())]
        await send(message)

    return sent


async def refuse(send: Send, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    """Answer a request with a status and a line of text."""
    told = {"content-type": "text/plain; charset=utf-8", **_SAFE, **(headers or {})}
    start = [(key.encode(), value.encode()) for key, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": f"belvedere: {text}\n".encode()})
