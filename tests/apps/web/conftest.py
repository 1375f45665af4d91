"""One studio and one browser for all tests of a session, and pages that watch what happens behind them.

The pictures of docs/images are made by the same tests, in the order in which the rooms fill the list of the last:

    BELVEDERE_SCREENSHOTS=docs/images pytest tests/apps/web/test_browser_{make,compress,orbit,personalise,machine}.py
"""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from belvedere.apps.web.studio import Studio
from tests.waiting import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE = (1280, 1024), (390, 844)
SCREENSHOTS = os.environ.get("BELVEDERE_SCREENSHOTS")
"""The folder that pictures of the page go to; none are made where it is not set."""


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    """A studio without a page."""
    studio = Studio(tmp_path / "studio", device="cpu")
    yield studio
    studio.runner.close()


@dataclass
class Server:
    """A ``belvedere serve`` that runs. ``seconds``: from the command to the first answer."""

    process: subprocess.Popen[str]
    url: str
    folder: Path
    seconds: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, *arguments: str, **environment: str) -> Server:
    """Start ``belvedere serve`` on a free port and return once it answers; the caller calls ``stop``."""
    port, began = free_port(), time.monotonic()
    command = [sys.executable, "-m", "belvedere", "serve", "--port", str(port), "--folder", str(folder)]
    root, log = str(Path(__file__).parents[3]), folder.parent / f"{folder.name}.log"
    process = subprocess.Popen(
        [*command, "--no-open", "--device", "cpu", *arguments],
        env={**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=log.open("w"),
        text=True,
    )
    url = f"http://127.0.0.1:{port}/"
    wait_until(lambda: answers(url), process, 120, log)
    return Server(process, url, folder, time.monotonic() - began)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False
    return True


def stop(server: Server) -> int:
    """End a server as a service manager does and return its exit code."""
    server.process.send_signal(signal.SIGTERM)
    try:
        return server.process.wait(60)
    finally:
        server.process.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A studio that all tests of the session share: others' results are on its shelf."""
    server = start(tmp_path_factory.mktemp("studio") / "kept")
    yield server
    assert stop(server) == 0


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install belvedere[test]")
    if not Path(CHROMIUM).is_file():
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page, and what must not happen on it: messages of its console, and requests to other hosts."""

    page: Any
    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def log(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location.get('url')})")

    def ask(self, url: str, base: str) -> None:
        if not url.startswith((base, "data:", "blob:")):
            self.strangers.append(url)


@pytest.fixture
def open_page(browser: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """Return ``open_page(room="Make", *, size=DESKTOP, dark=False, url=None)``: a Playwright page in that room.

    When the test ends it has logged no error on any page, and asked no other host for anything.
    """
    opened: list[Watched] = []
    contexts = []

    def open_(
        room: str = "Make", *, size: tuple[int, int] = DESKTOP, dark: bool = False, url: str | None = None
    ) -> Any:
        scheme = "dark" if dark else "light"
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, color_scheme=scheme, accept_downloads=True)
        contexts.append(context)
        watched = Watched(context.new_page())
        opened.append(watched)
        page, base = watched.page, url or server.url
        page.set_default_timeout(240_000)
        page.on("console", lambda m: watched.log(m))
        page.on("pageerror", lambda error: watched.errors.append(str(error)))
        page.on(
            "request",
            lambda r: watched.strangers.append(r.url) if not r.url.startswith((base, "data:", "blob:")) else None,
        )
        page.goto(base)
        page.get_by_role("tab", name=room).click()
        return page

    yield open_
    for context in contexts:
        context.close()
    assert [error for watched in opened for error in watched.errors] == []
    assert [url for watched in opened for url in watched.strangers] == []


@pytest.fixture
def shoot() -> Callable[[Any, str], None]:
    """Return ``shoot(page, name)``: what is seen of a page, as NAME.webp of ``SCREENSHOTS``."""

    def take(page: Any, name: str) -> None:
        if SCREENSHOTS:
            page.evaluate("document.activeElement.blur()")
            page.mouse.move(1, 1)
            page.wait_for_timeout(500)  # for the transitions of the page
            with Image.open(io.BytesIO(page.screenshot())) as image:
                image.convert("RGB").save(Path(SCREENSHOTS) / f"{name}.webp", quality=90, method=6)

    return take
