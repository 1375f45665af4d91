"""The pages keep their word: every event is in a table, programs run as written, the README shows each room."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from gradio_client import Client
from PIL import Image
from skimage import data

from belvedere.apps.web import scene_results
from belvedere.apps.web.page import ROOMS
from belvedere.apps.web.shelf import Shelf
from tests.apps.web.conftest import Server, start, stop

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "studio.md").read_text()
README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:7860/"
*PROGRAM, WITH_PASSWORD = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
MANY, FEW = "steps=400", "steps=4"
MAX_BYTES = 1_000_000


def test_the_readme_shows_each_room() -> None:
    shown = set(re.findall(r"docs/images/(studio-[a-z-]+\.webp)", README))
    assert shown == {f"studio-{room.lower()}.webp" for room in ROOMS} | {"studio-make-phone.webp"}
    assert sum((ROOT / "docs" / "images" / name).stat().st_size for name in shown) < MAX_BYTES


@pytest.mark.slow
def test_the_tables_name_every_event_and_what_it_takes(server: Server) -> None:
    events = Client(server.url, verbose=False).view_api(return_format="dict", print_info=False)["named_endpoints"]
    takes = {name: [each["parameter_name"] for each in event["parameters"]] for name, event in events.items()}
    told = {
        name: re.findall(r"`(\w+)`", row[2])
        for row in (line.split("|") for line in PAGE.splitlines() if line.startswith("| `/"))
        for name in re.findall(r"`(/\w+)`", row[1])
    }
    assert told == takes


@pytest.mark.slow
def test_the_program_runs_as_it_is_written(server: Server, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        scene_results.toy(number).save(tmp_path / f"{number}.jpg")
    scene_results.toy(5).save(tmp_path / "toy.png")
    Image.fromarray(data.chelsea()[40:168, 80:272]).save(tmp_path / "photo.jpg")
    text = "".join(PROGRAM)
    assert text.count(ADDRESS) == text.count(MANY) == 1
    shelf = Shelf(server.folder / "results")
    before = {entry.id for entry in shelf.newest(None, 500)}
    printed = run(text.replace(ADDRESS, server.url).replace(MANY, FEW), tmp_path)
    assert "car 7 0" in printed and "Settings of picture 1 of 4 (car)" in printed and "waiting" in printed
    made = [entry for entry in shelf.newest(None, 500) if entry.id not in before]
    names = sorted(name for entry in made for name in entry.names if entry.room != "Make")
    assert [entry.room for entry in made].count("Make") == 4
    for name in ("toy.concept.safetensors", "picture.png", "scene.safetensors", "view.png", "film.mp4", "mesh.glb"):
        assert name in names
    assert "picture.bvd" in names and names.count("picture.png") == 2


@pytest.mark.slow
def test_a_password_is_given_as_it_is_written(tmp_path: Path) -> None:
    server = start(tmp_path / "kept", BELVEDERE_AUTH="USER:PASSWORD")
    try:
        ask = "print(studio.predict(api_name='/state'))\n"
        assert "waiting" in run(WITH_PASSWORD.replace(ADDRESS, server.url) + ask, tmp_path)
    finally:
        assert stop(server) == 0


def run(program: str, folder: Path) -> str:
    """Run a program in a folder and return what it prints."""
    (folder / "program.py").write_text(program)
    done = subprocess.run([sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout
