"""How much a request may bring: its body is counted as it comes, and one that is too large is refused (413).

Gradio bounds each file of an upload, not all of them together, and reads any other body whole.
"""

import contextlib
import os
from pathlib import Path

from belvedere.apps.web.door import App, Receive, Scope, Send, refuse
from belvedere.apps.web.limits import Limits

UPLOAD = "/gradio_api/upload"
SHOWN = "shown"
"""Where in the folder of uploads the files lie that the studio itself shows."""


class Bodies:
    """ASGI middleware around ``app``. ``folder``: where uploads lie; once they fill it, more are refused (507)."""

    def __init__(self, app: App, limits: Limits, folder: Path):
        self.app, self.limits, self.folder = app, limits, folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with 413 or 507."""
        upload = scope.get("path") == UPLOAD and scope.get("method") == "POST"
        limits = self.limits
        most = limits.photographs * limits.upload_bytes if upload else limits.request_bytes
        told = next((int(value) for key, value in scope.get("headers", ()) if key.lower() == b"content-length"), 0)
        if told > most:
            await _too_large(send, most)
        elif upload and _size(self.folder) > limits.uploads_bytes:
            await refuse(send, 507, "too many uploads lie here: try again in an hour")
        else:
            await self._counted(scope, receive, send, most)

    async def _counted(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        """Pass a request on, as one whose sender has left once ``most`` bytes have come."""
        came, answered = 0, False

        async def received() -> Scope:
            nonlocal came
            if came > most:
                return {"type": "http.disconnect"}
            message = await receive()
            came += len(message.get("body", b""))
            return message if came <= most else {"type": "http.disconnect"}

        async def sent(message: Scope) -> None:
            nonlocal answered
            if came <= most or answered:
                answered = True
                await send(message)

        try:
            await self.app(scope, received, sent)
        except Exception:
            if came <= most:
                raise
        if came > most and not answered:
            await _too_large(send, most)


async def _too_large(send: Send, most: int) -> None:
    await refuse(send, 413, f"this request brings more than {most >> 20} MB: send less")


def _size(folder: Path) -> int:
    """Return the bytes of all uploads in a folder; of those that go meanwhile, 0."""
    total = 0
    for place, folders, names in os.walk(folder):
        if Path(place) == folder and SHOWN in folders:
            folders.remove(SHOWN)
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(place, name).stat().st_size
    return total
