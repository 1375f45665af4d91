"""A request that brings too much is refused, also where it does not say how much."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio.utils import get_upload_folder

from belvedere.apps.web.bodies import SHOWN, UPLOAD, Bodies
from belvedere.apps.web.limits import Limits
from belvedere.apps.web.page import build
from belvedere.apps.web.studio import Studio

MB = 1 << 20
LIMITS = Limits(upload_bytes=2 * MB, photographs=3, request_bytes=2 * MB, uploads_bytes=4 * MB)


async def page(scope: Any, receive: Any, send: Any) -> None:
    """Read the body as Starlette does, and answer."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RuntimeError("the client has left")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def ask(app: Any, folder: Path, path: str, megabytes: int, told: bool = False) -> tuple[int, bytes, int]:
    """Return status and body of the answer, and how many MB were taken in. ``told``: with its Content-Length."""
    sent: list[dict[str, Any]] = []
    left = megabytes

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": bytes(MB), "more_body": left > 0}

    headers = [(b"content-length", str(megabytes * MB).encode())] if told else []
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    with ThreadPoolExecutor(1) as pool:  # a browser of other tests has a loop in this thread
        pool.submit(asyncio.run, Bodies(app, LIMITS, folder)(scope, receive, send)).result()
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], sent[1]["body"], megabytes - left


@pytest.mark.parametrize(("path", "most"), [("/gradio_api/call/make", 2), ("/", 2), (UPLOAD, 6)])
@pytest.mark.parametrize("told", [True, False])
def test_a_body_is_bounded(path: str, most: int, told: bool, tmp_path: Path) -> None:
    assert ask(page, tmp_path, path, most, told) == (200, b"", most)
    status, words, taken = ask(page, tmp_path, path, 50, told)
    assert status == 413 and words == f"belvedere: this request brings more than {most} MB: send less\n".encode()
    assert taken == (0 if told else most + 1)


def test_uploads_are_refused_while_the_folder_is_full(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.png").write_bytes(bytes(4 * MB + 1))
    assert ask(page, tmp_path, UPLOAD, 1)[0] == 507
    assert ask(page, tmp_path, "/gradio_api/call/make", 1)[0] == 200
    assert ask(page, tmp_path / "none", UPLOAD, 1)[0] == 200


def test_what_the_studio_shows_is_no_upload(tmp_path: Path) -> None:
    shown, upload = (tmp_path / name / "a" / "b.png" for name in (SHOWN, "c"))
    for path in (shown, upload):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(3 * MB))
    assert ask(page, tmp_path, UPLOAD, 1)[0] == 200
    (tmp_path / "c" / SHOWN).mkdir()
    (tmp_path / "c" / SHOWN / "d.png").write_bytes(bytes(2 * MB))
    assert ask(page, tmp_path, UPLOAD, 1)[0] == 507


def test_what_only_shows_lies_apart_from_uploads(tmp_path: Path) -> None:
    blocks = build(Studio(tmp_path, "cpu"))
    taken = {block._id for event in blocks.fns.values() for block in event.inputs}
    files = (gr.Image, gr.ImageSlider, gr.Model3D, gr.File, gr.Gallery, gr.Video)
    shows = [block for block in blocks.blocks.values() if isinstance(block, files) and block._id not in taken]
    assert shows and {block.GRADIO_CACHE for block in shows} == {str(Path(get_upload_folder()) / SHOWN)}


def test_errors_of_the_page_are_its_own(tmp_path: Path) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        ask(broken, tmp_path, "/", 1)
