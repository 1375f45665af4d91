"""The server starts when it may, says where it is, tells no secret, and ends when it is asked to."""

import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from belvedere.apps.web.serve import Settings, default_folder
from belvedere.errors import InputError
from tests.apps.conftest import assert_refused
from tests.apps.web.conftest import Server, start, stop

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


def test_where_results_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "belvedere" / "studio"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_folder().is_relative_to(Path.home())


def test_refusals_are_one_line(command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BELVEDERE_AUTH", raising=False)
    file = tmp_path / "file"
    file.write_text("")
    assert_refused(command("serve", "--host", "0.0.0.0", "--folder", tmp_path), "BELVEDERE_AUTH")
    assert_refused(command("serve", "--port", 70000, "--folder", tmp_path), "port 70000")
    assert_refused(command("serve", "--model", "mine", "--folder", tmp_path), "NAME=FOLDER")
    assert_refused(command("serve", "--folder", file / "below"), "cannot write")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_refused(command("serve", "--port", port, "--folder", tmp_path), f"port {port}", "--port")


@pytest.mark.slow
def test_the_page_is_there_soon_and_a_second_server_is_refused(server: Server) -> None:
    port = server.url.rstrip("/").rsplit(":", 1)[1]
    command = [sys.executable, "-m", "belvedere", "serve", "--port", port, "--folder", str(server.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and port in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_asked(how: signal.Signals, tmp_path: Path) -> None:
    server = start(tmp_path / "kept")
    assert server.process.stdout is not None
    assert server.process.stdout.readline().startswith(f"The studio is at {server.url}")
    server.process.send_signal(how)
    assert server.process.wait(30) == 0
    assert "Traceback" not in (tmp_path / "kept.log").read_text()


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
