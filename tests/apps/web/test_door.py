"""Who may come in is decided before any page is asked."""

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from belvedere.apps.web.door import OTHER_PAGE, Door

AUTH = "ada", "secret:word"


def ask(door: Door, *headers: tuple[str, str], path: str = "/", kind: str = "http") -> tuple[int, dict[str, str]]:
    """Return the status and headers of the answer to a request."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": f"{kind}.request"}

    scope = {"type": kind, "path": path, "headers": [(key.encode(), value.encode()) for key, value in headers]}
    with ThreadPoolExecutor(1) as pool:  # a browser of other tests has a loop in this thread
        pool.submit(asyncio.run, door(scope, receive, send)).result()
    return sent[0].get("status", 0), {key.decode(): value.decode() for key, value in sent[0].get("headers", [])}


async def page(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Frame-Options", b"ALLOW")]})
    await send({"type": "http.response.body", "body": b""})


def basic(words: str) -> tuple[str, str]:
    return "Authorization", "Basic " + base64.b64encode(words.encode()).decode()


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "[::1]:7860", "localhost:1", "127.3.2.1:7860"])
def test_this_machine_may_come_in(host: str) -> None:
    assert ask(Door(page, None), ("host", host))[0] == 200
    assert ask(Door(page, None), ("host", host), ("origin", f"http://{host}"))[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:7860", "", "[", "::1"]
)
def test_names_that_lead_here_from_elsewhere_are_refused(host: str) -> None:
    assert ask(Door(page, None), ("host", host))[0] == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost:7860", "http://["]
)
def test_other_pages_may_not_ask(origin: str) -> None:
    assert "a proxy before the studio must pass the header Host on" in OTHER_PAGE
    for door, more in ((Door(page, None), ()), (Door(page, AUTH), (basic("ada:secret:word"),))):
        assert ask(door, ("host", "127.0.0.1:7860"), ("origin", origin), *more)[0] == 403


@pytest.mark.parametrize(
    "header",
    [
        (),
        (basic("ada:wrong"),),
        (basic("ada:secret:word "),),
        (basic(""),),
        (("Authorization", "Basic !!!"),),
        (("Authorization", "Bearer " + base64.b64encode(b"ada:secret:word").decode()),),
        (("Authorization", "Basic \xe9"),),
    ],
)
def test_a_wrong_password_is_refused(header: tuple[tuple[str, str], ...]) -> None:
    status, headers = ask(Door(page, AUTH), ("host", "studio.example"), *header)
    assert status == 401 and headers["www-authenticate"].startswith("Basic")


def test_the_right_password_opens_on_any_host() -> None:
    assert ask(Door(page, AUTH), ("host", "studio.example"), basic("ada:secret:word"))[0] == 200


def test_answers_are_guarded() -> None:
    _, headers = ask(Door(page, None), ("host", "localhost"))
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert "X-Frame-Options" not in headers, "ours replaces it"
    assert "default-src 'self'" in headers["content-security-policy"]
    for path in (
        "/gradio_api/file=/tmp/x.svg",
        "/gradio_api/file//tmp/x.svg",
        "/gradio_api/stream/a/1/2/playlist-file",
        "/studio/files/a/b.svg",
    ):
        _, headers = ask(Door(page, None), ("host", "localhost"), path=path)
        assert headers["content-security-policy"].startswith("sandbox"), path


@pytest.mark.parametrize("route", ["file=", "file/", "proxy="])
@pytest.mark.parametrize("address", ["https://evil.example/x.png", "http://evil.example/x.png"])
def test_no_address_of_elsewhere_is_opened(address: str, route: str) -> None:
    for door, more in ((Door(page, None), ()), (Door(page, AUTH), (basic("ada:secret:word"),))):
        assert ask(door, ("host", "localhost"), *more, path=f"/gradio_api/{route}{address}")[0] == 403


def test_there_are_no_websockets() -> None:
    assert ask(Door(page, None), ("host", "localhost"), kind="websocket")[0] == 0
