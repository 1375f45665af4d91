"""The server: settings checked, the page behind its door, results by id, an end when it is asked to end."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere.apps.importing import uncollected
from belvedere.apps.output import check_folder
from belvedere.apps.requests import GenerateRequest
from belvedere.apps.web.door import is_loopback
from belvedere.apps.web.shelf import age
from belvedere.checkpoints import store
from belvedere.errors import InputError

if TYPE_CHECKING:
    from belvedere.apps.web.studio import Studio

TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".mp4": "video/mp4",
    ".glb": "model/gltf-binary",
    ".json": "application/json",
}
"""Media types of results; any other file is only for download."""
SHOWN = (".png", ".jpg", ".webp", ".gif", ".mp4")
GRACE = 2
"""Seconds that open connections, and then work under way, have when the server ends."""
_FETCH = "async_ssrf_protected_download"
"""What Gradio's ``processing_utils`` calls the function by which an event fetches an upload that is an address."""


@dataclass(frozen=True)
class Settings:
    """Where the studio is served and kept. ``auth``: "USER:PASSWORD"; needed unless ``host`` is this machine alone.
    ``models``: folders of models that are offered beside the embedded ones, by name."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = 7860
    auth: str | None = field(default=None, repr=False)
    device: str = "auto"
    models: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise InputError(f"port {self.port}: give one from 1 to 65535")
        if self.auth is not None and not all(self.pair or ("", "")):
            raise InputError("the user and password must be written USER:PASSWORD, neither empty")
        if self.auth is None and not is_loopback(self.host):
            raise InputError(
                f"host {self.host} can be reached from other machines: set BELVEDERE_AUTH=USER:PASSWORD, or give --auth"
            )
        GenerateRequest(device=self.device)  # refuses a device as requests do
        for name, path in self.models.items():
            _check_model(name, path)

    @property
    def pair(self) -> tuple[str, str] | None:
        """The user and the password."""
        if self.auth is None:
            return None
        user, _, password = self.auth.partition(":")
        return user, password

    @property
    def address(self) -> str:
        """What to type into a browser."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"


def _check_model(name: str, path: Path) -> None:
    if not re.fullmatch(r"[\w.-]{1,60}", name) or name in store.embedded():
        raise InputError(f"model {name!r}: give letters, digits, . and -, and no name of an embedded model")
    if not (path / "model_index.json").is_file():
        raise InputError(f"model {name}: no model_index.json in {path}; give the folder of a saved model")
    store.check_kind(name, path)


def default_folder() -> Path:
    """Return where results are kept when nothing is said: ``XDG_DATA_HOME``, else ~/.local/share.

    Raises ``InputError`` where no home is known.
    """
    try:
        base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    except RuntimeError as error:
        raise InputError("no home folder is known here to keep results in: give one with --folder") from error
    return Path(base) / "belvedere" / "studio"


def application(studio: "Studio", auth: tuple[str, str] | None = None, port: int = 7860) -> Any:
    """Return the ASGI application: the page at ``/`` and results at ``/studio/files/ID/NAME``, behind the door."""
    import fastapi
    import gradio as gr
    from gradio.utils import get_upload_folder

    from belvedere.apps.web import bodies, door, page, theme
    from belvedere.apps.web import studio as shared

    _fetch_nothing()
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get(f"/{shared.FILES}/{{id}}/{{name}}")
    def download(id: str, name: str) -> fastapi.Response:
        try:
            path = studio.shelf.file(id, name)
        except InputError as error:
            return fastapi.responses.PlainTextResponse(f"{error}\n", 404)
        shown = "inline" if path.suffix in SHOWN else "attachment"
        return fastapi.responses.FileResponse(
            path,
            media_type=TYPES.get(path.suffix, "application/octet-stream"),
            filename=f"belvedere-{id[:6]}-{name}",
            content_disposition_type=shown,
            headers={"cache-control": "private, max-age=3600"},
        )

    gr.mount_gradio_app(
        app,
        page.build(studio),
        "/",
        server_name="127.0.0.1",
        server_port=port,
        footer_links=["api"],
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=studio.limits.upload_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme.make_theme(),
        css=theme.CSS,
        head=theme.HEAD,
    )
    return door.Door(bodies.Bodies(app, studio.limits, Path(get_upload_folder())), auth)


def _fetch_nothing() -> None:
    """Refuse uploads that are addresses: Gradio fetches them whole, of any size, before an event sees them."""
    from gradio import Error, processing_utils

    if not hasattr(processing_utils, _FETCH):
        raise RuntimeError(f"this Gradio has no processing_utils.{_FETCH}: uploads by address cannot be refused")

    async def refuse(url: str, cache_dir: str) -> str:
        raise Error("Give a file, not an address.", print_exception=False)

    setattr(processing_utils, _FETCH, refuse)


def serve(settings: Settings, *, ready: Callable[[str], object]) -> None:
    """Serve the studio until the process is told to end; ``ready`` is called with the address once it answers.

    Raises ``InputError`` when the folder cannot be written or the port is taken.
    """
    folder, models = settings.folder.absolute(), {name: path.absolute() for name, path in settings.models.items()}
    check_folder(folder)
    taken = _bind(settings)
    uploads = folder / "uploads"
    for private in (folder, uploads):
        private.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chdir(uploads)  # Gradio may serve files of the working directory
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(uploads)}
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take the cores that serve the page
    logging.basicConfig(format="belvedere: %(message)s", level=logging.WARNING)
    with uncollected():
        import uvicorn

        from belvedere.apps.web.page import CACHE
        from belvedere.apps.web.studio import Studio

        _clear(uploads, CACHE[1])
        studio = Studio(folder, settings.device, models=models)
        app = application(studio, settings.pair, settings.port)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    server = uvicorn.Server(config)
    threading.Thread(target=_greet, args=(server, settings.address, ready, studio), daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn ends by them, then raises them again for who was here
        signal.signal(number, signal.SIG_IGN)
    try:
        server.run(sockets=[taken])
    finally:
        ended = studio.close(GRACE)
    if not ended:  # an import or a step that takes long; whatever is on the shelf is whole
        sys.stdout.flush()
        os._exit(0)


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether uvicorn tells anything but that pages were open when the server was asked to end."""
    cut = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cut and "timeout graceful shutdown exceeded" not in record.getMessage()


def _clear(uploads: Path, seconds: float) -> None:
    """Remove what is older than so many seconds: Gradio removes only what came to a server that has not been killed."""
    old = [path for path in uploads.rglob("*") if age(path) > seconds]
    for path in sorted(old, reverse=True):  # what is in a folder before the folder
        with contextlib.suppress(OSError):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()


def _greet(server: Any, address: str, ready: Callable[[str], object], studio: "Studio") -> None:
    """Once the server answers, say so, and load the first model."""
    from belvedere.apps.web import making

    while not server.started and not server.should_exit:
        time.sleep(0.05)
    if server.started:
        ready(address)
    if not server.should_exit:
        studio.runner.background("Make", lambda: making.warm(studio))


def _bind(settings: Settings) -> socket.socket:
    """Return a socket that listens; ``InputError`` when the port is taken or the host is none of this machine."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        return listening
    except OSError as error:
        raise InputError(
            f"cannot serve on {settings.host} port {settings.port}: {error.strerror}; choose another with --port"
        ) from error
