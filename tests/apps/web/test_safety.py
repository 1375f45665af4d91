"""Nothing but uploads of one's own and results leaves the server, and nothing hostile is taken in."""

import io
import json
import os
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from belvedere.apps.web.bodies import SHOWN
from tests.apps.web.conftest import Server
from tests.apps.web.test_uploads import bomb

pytestmark = pytest.mark.slow

SECRET = "this-must-not-leave"


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return Client(server.url, verbose=False)


@pytest.fixture(scope="module")
def result(server: Server, client: Client) -> dict[str, Any]:
    return client.predict("dimr-toybox", ["car"], steps=1, count=1, api_name="/make")[1][0]


def get(url: str) -> tuple[int, bytes, Message]:
    """Return status, body and headers; the path is sent as it is written."""
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def forms(path: str) -> list[str]:
    """Return ways to write a path that careless servers undo after they looked."""
    absolute, climb = path.lstrip("/"), "../" * 12 + path.lstrip("/")
    plain = [path, f"//{absolute}", climb, f"./{climb}", climb.replace("/", "\\"), f"file://{path}", f"~/../..{path}"]
    plain += [f"\\\\127.0.0.1\\c$\\{absolute}", f"C:\\{absolute}", f"C:/{absolute}", climb.replace("../", "....//")]
    once = [quote(one, safe="") for one in plain]
    return [*(quote(one, safe="/") for one in plain), *once, *(quote(one, safe="") for one in once)]


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("outside") / "secret.txt"
    path.write_text(SECRET)
    return path


def test_no_path_leads_out_by_gradios_files(server: Server, secret: Path, result: dict[str, Any]) -> None:
    facts = server.folder / "results" / result["id"] / "facts.json"
    tried = [*forms(str(secret)), *forms(str(facts)), *forms("/etc/passwd"), *forms("/proc/self/environ")]
    for written in tried:
        for route in ("gradio_api/file=", "gradio_api/file/", "file=", "static/", "assets/", "gradio_api/proxy="):
            status, body, _ = get(f"{server.url}{route}{written}")
            assert status >= 400 or b"<!doctype html" in body.lower(), (route, written)
            assert SECRET.encode() not in body and b"root:" not in body and b'"room"' not in body, (route, written)


def test_no_path_leads_out_by_our_downloads(server: Server, secret: Path, result: dict[str, Any]) -> None:
    base = f"{server.url}studio/files/"
    assert get(f"{base}{result['id']}/picture.png")[0] == 200
    tried = [*forms(str(secret)), *forms("/etc/passwd"), "facts.json", "../facts.json", "%2e%2e%2ffacts.json", ".."]
    for written in tried:
        for url in (f"{base}{result['id']}/{written}", f"{base}{written}", f"{base}{written}/picture.png"):
            status, body, _ = get(url)
            assert status >= 400 and SECRET.encode() not in body and b"root:" not in body, url


def test_a_link_on_the_shelf_is_not_followed(server: Server, client: Client, secret: Path) -> None:
    made = client.predict("dimr-toybox", ["car"], steps=1, count=1, api_name="/make")[1][0]
    path = server.folder / "results" / made["id"] / "picture.png"
    data = path.read_bytes()
    path.unlink()
    path.symlink_to(secret)
    status, body, _ = get(server.url + made["url"])
    path.unlink()
    path.write_bytes(data)  # other tests show what is on the shelf
    assert status == 404 and SECRET.encode() not in body


def test_an_event_takes_no_path_of_the_server(server: Server, secret: Path, result: dict[str, Any]) -> None:
    picture = server.folder / "results" / result["id"] / "picture.png"
    copied = secret.with_name("picture.png")
    copied.write_bytes(picture.read_bytes())
    for path in (secret, copied, picture, Path("/etc/passwd"), Path("http://127.0.0.1:1/x.png")):
        for url in (None, str(path), f"file://{path}"):
            data = [{"path": str(path), "url": url, "meta": {"_type": "gradio.FileData"}}]
            body = json.dumps({"data": data, "session_hash": "s"}).encode()
            request = urllib.request.Request(f"{server.url}gradio_api/call/recall", body)
            request.add_header("Content-Type", "application/json")
            event = json.loads(urllib.request.urlopen(request).read())["event_id"]
            told = get(f"{server.url}gradio_api/call/recall/{event}")[1]
            assert b"event: error" in told and b"Settings of" not in told and SECRET.encode() not in told, told


def test_nothing_is_fetched_from_an_address(server: Server, client: Client) -> None:
    address = "https://example.com/x.png"
    held = [{"id": handle_file(address)}]
    for asked, event in ((handle_file(address), "/recall"), (held, "/results")):
        with pytest.raises(AppError, match="Give a file, not an address"):
            client.predict(asked, api_name=event)
    for route in ("file=", "file/", "proxy="):
        assert get(f"{server.url}gradio_api/{route}{address}")[0] == 403
        assert get(f"{server.url}gradio_api/{route}{quote(address, safe='')}")[0] == 403


def upload(server: Server, name: str, data: bytes, kind: str = "application/octet-stream") -> httpx.Response:
    return httpx.post(f"{server.url}gradio_api/upload", files={"files": (name, data, kind)}, timeout=60)


@pytest.mark.parametrize("name", ["x.svg", "x.html", "x.xhtml", "x.xml", "x.js", "x.pdf", "x.png"])
def test_an_upload_runs_nothing_when_it_is_opened(name: str, server: Server) -> None:
    script = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    kind = "text/html" if name.endswith("html") else "image/svg+xml"
    answer = upload(server, name, script, kind)
    if name != "x.png" and answer.status_code >= 400:  # else it is there, whatever is in it
        return
    status, _, headers = get(f"{server.url}gradio_api/file={answer.json()[0]}")
    assert status == 200
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert "html" not in headers["content-type"] or "attachment" in headers["content-disposition"]


@pytest.mark.parametrize("name", ["../../../../tmp/escaped-b.png", "..\\..\\escaped-b.png", "/tmp/escaped-b.png"])
def test_the_name_of_an_upload_leads_nowhere(name: str, server: Server) -> None:
    stored = Path(upload(server, name, b"x").json()[0])
    assert stored.resolve().is_relative_to((server.folder / "uploads").resolve())
    assert not Path("/tmp/escaped-b.png").exists()


def test_what_is_shown_is_served_and_is_no_upload(server: Server, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "x.png")
    page = Client(server.url, verbose=False, download_files=False)
    shown, *_ = page.predict(handle_file(tmp_path / "x.png"), 2, [], api_name="/compress")
    assert len(shown["value"]) == 2
    for picture in shown["value"]:
        assert Path(picture["path"]).resolve().is_relative_to((server.folder / "uploads" / SHOWN).resolve())
        assert get(f"{server.url}gradio_api/file={picture['path']}")[0] == 200


def test_too_large_an_upload_is_refused_and_leaves_nothing(server: Server) -> None:
    before = sum(path.stat().st_size for path in server.folder.rglob("*") if path.is_file())
    answer = upload(server, "large.png", bytes(33 << 20))
    assert answer.status_code in (400, 413)
    after = sum(path.stat().st_size for path in server.folder.rglob("*") if path.is_file())
    assert after - before < 1 << 20


def test_a_request_that_brings_too_much_is_refused(server: Server) -> None:
    asked = {"data": ["x" * (5 << 20)]}
    assert httpx.post(f"{server.url}gradio_api/call/make", json=asked).status_code == 413
    assert server.process.poll() is None


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("bomb.png", bomb(50_000, 50_000), "carries no settings|damaged"),
        ("picture.png", png(), "carries no settings"),
        ("page.png", b"<html><script>alert(1)</script></html>", "no PNG, JPEG or WebP"),
        ("vector.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no PNG, JPEG or WebP"),
        ("empty.png", b"", "no PNG, JPEG or WebP"),
        ("half.png", png()[:40], "damaged|carries no settings"),
    ],
)
def test_wrong_uploads_are_refused_in_words(name: str, data: bytes, word: str, client: Client, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(AppError, match=word) as refused:
        client.predict(handle_file(path), api_name="/recall")
    assert str(tmp_path) not in str(refused.value) and "Traceback" not in str(refused.value)


def test_memory_stays_where_it_was_after_bombs(server: Server, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(2**31 - 1, 2**31 - 1))
    before = resident(server)
    for _ in range(5):
        with pytest.raises(AppError):
            client.predict(handle_file(path), api_name="/recall")
    assert resident(server) - before < 200 << 20


def resident(server: Server) -> int:
    """Return the bytes of memory that a server holds."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_other_hosts_and_pages_are_turned_away(server: Server) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        for path in ("", "config", "gradio_api/info", "gradio_api/file=/etc/passwd"):
            assert httpx.get(server.url + path, headers=headers).status_code == 403
        assert httpx.post(f"{server.url}gradio_api/call/empty", headers=headers, json={"data": []}).status_code == 403


def test_nobody_is_told_what_nobody_needs(server: Server) -> None:
    config = json.loads(get(f"{server.url}config")[1])
    text = json.dumps(config)
    assert "api.gradio.app" not in text and "huggingface.co" not in text and "fonts.googleapis" not in text
    page = get(server.url)[1].decode()
    assert "googleapis" not in page and "gstatic" not in page
    for route in ("docs", "openapi.json", "redoc", "monitoring", "gradio_api/monitoring"):
        status, body, _ = get(server.url + route)
        assert status >= 400 or b"<!doctype html" in body.lower()
