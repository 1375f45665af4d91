"""The server starts when it may, says where it is, tells no secret, and ends when it is asked to."""

import asyncio
import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import pytest
from gradio import processing_utils
from gradio_client import Client, handle_file
from PIL import Image

from belvedere.apps.web import serve as serving
from belvedere.apps.web.serve import Settings, default_folder
from belvedere.errors import InputError
from tests.apps.conftest import assert_refused
from tests.apps.web.conftest import Server, answers, free_port, start, stop
from tests.waiting import wait_until

SECRET = "correct-horse-battery"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_other_machines_need_a_password(host: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="BELVEDERE_AUTH"):
        Settings(tmp_path, host)
    assert Settings(tmp_path, host, auth=f"ada:{SECRET}").pair == ("ada", SECRET)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.3.2.1"])
def test_this_machine_needs_none(host: str, tmp_path: Path) -> None:
    assert Settings(tmp_path, host).pair is None


@pytest.mark.parametrize("auth", ["", "ada", "ada:", ":secret"])
def test_half_a_password_is_refused_and_not_told(auth: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="USER:PASSWORD") as refused:
        Settings(tmp_path, auth=auth)
    assert "secret" not in str(refused.value)
    assert SECRET not in repr(Settings(tmp_path, auth=f"ada:{SECRET}"))


def test_a_password_may_hold_a_colon(tmp_path: Path) -> None:
    assert Settings(tmp_path, auth="ada:one:two").pair == ("ada", "one:two")


def test_models_of_ones_own_are_checked(tmp_path: Path, tiny_model: Path) -> None:
    Settings(tmp_path, models={"mine": tiny_model})
    for models in ({"mine": tmp_path}, {"dimr-toybox": tiny_model}, {"../mine": tiny_model}):
        with pytest.raises(InputError, match="model"):
            Settings(tmp_path, models=models)


def test_a_model_that_no_room_offers_is_refused(tmp_path: Path, command: Callable) -> None:
    for kind in ("FluxPipeline", None, ["x"]):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
        with pytest.raises(InputError, match="Belvedere loads no"):
            Settings(tmp_path, models={"mine": tmp_path})
    assert_refused(command("serve", "--model", f"mine={tmp_path}", "--folder", tmp_path), "model mine", "SegPICCodec")


def test_where_results_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "belvedere" / "studio"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_folder().is_relative_to(Path.home())
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # no entry in the table of users either
    with pytest.raises(InputError, match="no home folder is known here to keep results in: give one with --folder"):
        default_folder()


def test_refusals_are_one_line(command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BELVEDERE_AUTH", raising=False)
    file = tmp_path / "file"
    file.write_text("")
    assert_refused(command("serve", "--host", "0.0.0.0", "--folder", tmp_path), "BELVEDERE_AUTH")
    assert_refused(command("serve", "--port", 70000, "--folder", tmp_path), "port 70000")
    assert_refused(command("serve", "--model", "mine", "--folder", tmp_path), "NAME=FOLDER")
    assert_refused(command("serve", "--folder", file / "below"), "cannot write")
    assert_refused(command("serve", "--device", "gpu", "--folder", tmp_path), "cuda:N", "'gpu'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_refused(command("serve", "--port", port, "--folder", tmp_path), f"port {port}", "--port")


def test_no_upload_is_fetched_from_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processing_utils, serving._FETCH, None)  # so that it is as it was at the end
    serving._fetch_nothing()
    box, address = gr.File(render=False), "https://example.org/x.png"
    with pytest.raises(gr.Error, match="not an address"):
        box.move_resource_to_block_cache(address)
    with ThreadPoolExecutor(1) as pool, pytest.raises(gr.Error, match="not an address"):
        pool.submit(asyncio.run, box.async_move_resource_to_block_cache(address)).result()


def test_a_gradio_that_would_fetch_uploads_in_another_way_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(processing_utils, serving._FETCH)
    with pytest.raises(RuntimeError, match=serving._FETCH):
        serving._fetch_nothing()


def test_old_uploads_go_and_new_ones_stay(tmp_path: Path) -> None:
    for name in ("old/a.png", "both/a.png", "both/b.png", "new/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("old/a.png", "old", "both/a.png", "both"):
        os.utime(tmp_path / name, (time.time() - 4000,) * 2)
    serving._clear(tmp_path, 3600)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == ["both", "both/b.png", "new", "new/a.png"]


@pytest.mark.slow
def test_the_page_is_there_soon_and_a_second_server_is_refused(server: Server) -> None:
    assert server.seconds < 60
    port = server.url.rstrip("/").rsplit(":", 1)[1]
    command = [sys.executable, "-m", "belvedere", "serve", "--port", port, "--folder", str(server.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and port in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_asked_without_a_word_of_open_pages(how: signal.Signals, tmp_path: Path) -> None:
    server = start(tmp_path / "kept")
    page = Client(server.url, verbose=False)  # listens for as long as it is there
    assert server.process.stdout is not None
    assert server.process.stdout.readline().startswith(f"The studio is at {server.url}")
    server.process.send_signal(how)
    assert server.process.wait(30) == 0 and page
    assert (tmp_path / "kept.log").read_text() == ""


@pytest.mark.slow
def test_what_a_server_that_was_killed_left_goes(tmp_path: Path) -> None:
    first = start(tmp_path / "kept")
    first.process.kill()
    first.process.wait()
    for folder in (first.folder, first.folder / "uploads", first.folder / "results"):
        assert folder.stat().st_mode & 0o777 == 0o700, "for its owner alone to read"
    old, new = (first.folder / "uploads" / name for name in ("old.png", "new.png"))
    for path, seconds in ((old, 4000), (new, 0)):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - seconds,) * 2)
    second = start(tmp_path / "kept")
    try:
        assert not old.exists() and new.exists()
    finally:
        assert stop(second) == 0


SLOW_TO_OPEN = """import sys, time
from pathlib import Path
from belvedere.apps.web import making, serve

making.warm = lambda studio: None
making.load = lambda studio, name: time.sleep(60)
settings = serve.Settings(Path(sys.argv[1]), port=int(sys.argv[2]), device="cpu")
serve.serve(settings, ready=lambda address: None)
"""
"""A studio whose models take a minute to open, which nothing can cut short."""


@pytest.mark.slow
def test_a_lesson_ends_with_the_server_while_a_model_is_opened(tmp_path: Path) -> None:
    folder, port = tmp_path / "kept", free_port()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SLOW_TO_OPEN, str(folder), str(port)], env=environment)
    url, child = f"http://127.0.0.1:{port}/", 0
    try:
        wait_until(lambda: answers(url), process, 120)
        client = Client(url, verbose=False)
        Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
        photographs = [handle_file(tmp_path / "a.png")] * 3
        lesson = client.predict(photographs, "<thing>", "car", "toybox-diffusion", 400, api_name="/personalise_begin")
        child = int((folder / "lessons" / lesson / "process").read_text())
        client.submit("dimr-toybox", ["car"], api_name="/make")
        wait_until(lambda: "Make, for" in client.predict(api_name="/state"), process, 120)
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
        assert not Path(f"/proc/{child}").exists()
    finally:
        process.kill()
        with contextlib.suppress(ProcessLookupError):
            if child:
                os.kill(child, signal.SIGKILL)


@pytest.mark.slow
def test_nothing_is_served_without_the_password(tmp_path: Path) -> None:
    server = start(tmp_path / "kept", BELVEDERE_AUTH=f"ada:{SECRET}")
    try:
        for path in ("", "config", "gradio_api/info", "theme.css", "gradio_api/file=/etc/passwd", "studio/files/a/b"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(server.url + path)
            assert refused.value.code == 401 and refused.value.headers["www-authenticate"].startswith("Basic")
        for word in (f"ada:{SECRET}x", "ada:", f"eve:{SECRET}", SECRET):
            assert _code(server, word) == 401
        assert _code(server, f"ada:{SECRET}") == 200
    finally:
        assert stop(server) == 0
    assert server.process.stdout is not None
    assert SECRET not in server.process.stdout.read() + (tmp_path / "kept.log").read_text()


def _code(server: Server, word: str) -> int:
    import base64

    request = urllib.request.Request(server.url)
    request.add_header("Authorization", "Basic " + base64.b64encode(word.encode()).decode())
    try:
        return urllib.request.urlopen(request).status
    except urllib.error.HTTPError as error:
        return error.code
