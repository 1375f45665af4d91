"""Latents computed beforehand: what they hold, and that stopping, killing and sharing the work change nothing."""

import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from belvedere.apps.prepare import Encoder, Key, pictures_at, prepare
from belvedere.checkpoints.autoencoder import load_autoencoder
from belvedere.data.folders import ImageFolder
from belvedere.data.latents import Latents, MixedLatents
from belvedere.errors import InputError
from tests.apps.test_output import full_disk
from tests.checkpoints.test_autoencoder import save_tiny_autoencoder
from tests.data.test_webdataset import write as write_tar
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = [(40, 30), (30, 40), (64, 16), (40, 30), (9, 21), (3, 2), (40, 30), (100, 20), (32, 32)]
OPTIONS: dict[str, Any] = {"side": 32, "unit": 4, "shard_size": 2, "batch": 2}
"""Nine pictures in five shards."""


def png(index: int) -> bytes:
    width, height = SIZES[index]
    stream = io.BytesIO()
    noise = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_autoencoder(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for index in range(len(SIZES)):
        path = tmp_path / f"pictures/{'ab'[index // 5]}/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(index))
    return tmp_path / "pictures"


def make(pictures: Path, out: Path, vae: Path, **options: Any) -> int:
    return prepare(pictures_at(pictures), out, vae, **OPTIONS | options)


def content(folder: Path) -> dict[str, bytes]:
    """Return what is in a folder, hidden files too, but for the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def moments_of(vae: Path, image: Tensor) -> Tensor:
    model = load_autoencoder(vae, torch.float32, torch.device("cpu"))
    return model.encode(image[None]).latent_dist.parameters[0]


def test_items_are_the_moments_of_the_pictures_and_of_their_mirror_images(
    pictures: Path, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(pictures, tmp_path / "out", vae) == 0
    latents, images = MixedLatents(tmp_path / "out"), ImageFolder(pictures, 32, flip=True, unit=4)
    squares = ImageFolder(pictures, 32, flip=True)
    assert len(latents) == 2 * len(images) == 36 and latents.classes == images.classes == ("a", "b")
    for i in range(36):
        number, mirrored, again = i // 4, i // 2 % 2, i % 2
        larger = SIZES[number][0] * SIZES[number][1] > 32 * 32
        if larger:  # whole, whole mirrored, square, square mirrored; others have each of their views twice
            mirrored, again = again, mirrored
        wanted = (squares if larger and again else images)[2 * number + mirrored]
        assert latents[i]["label"] == wanted["label"]
        torch.testing.assert_close(latents[i]["moments"], moments_of(vae, wanted["image"]), atol=1e-3, rtol=1e-3)
    size = latents.batch(range(0, 36, 4))["size"]
    assert size.tolist() == [[12, 18], [18, 12], [8, 32], [12, 18], [10, 4], [2, 2], [12, 18], [6, 34], [16, 16]]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and "00004-of-00005.safetensors: " in lines[4] and lines[4].endswith("0:00:00 left")
    assert lines[5].endswith("out: latents of 9 pictures, 0 skipped")


def test_squares_are_latents_of_one_size(pictures: Path, vae: Path, tmp_path: Path) -> None:
    assert make(pictures, tmp_path / "out", vae, square=True, flip=False) == 0
    latents, images = Latents(tmp_path / "out"), ImageFolder(pictures, 32)
    batch = latents.batch(range(9))
    assert batch["moments"].shape == (9, 8, 16, 16) and batch["label"].tolist() == [0] * 5 + [1] * 4
    for i in range(9):
        want = moments_of(vae, images[i]["image"])
        torch.testing.assert_close(batch["moments"][i], want, atol=1e-3, rtol=1e-3)


def test_bfloat16_is_near(pictures: Path, vae: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        make(pictures, tmp_path / dtype, vae, dtype=dtype)
    exact, near = (MixedLatents(tmp_path / dtype).batch(range(36))["moments"] for dtype in ("float32", "bfloat16"))
    assert 0 < (exact - near).abs().max() < 0.2 * exact.std()


def test_parquet_gives_what_the_folder_gives(pictures: Path, vae: Path, tmp_path: Path) -> None:
    rows = {"image": [{"bytes": png(i)} for i in range(9)], "label": [0] * 5 + [1] * 4}
    pq.write_table(pa.table(rows).replace_schema_metadata({"classes": "a,b"}), tmp_path / "p.parquet")
    make(pictures, tmp_path / "folder", vae)
    make(tmp_path / "p.parquet", tmp_path / "parquet", vae)
    folder, parquet = content(tmp_path / "folder"), content(tmp_path / "parquet")
    assert folder.pop("prepare.json") != parquet.pop("prepare.json") and folder == parquet


@pytest.mark.parametrize("tars", [1, 2])
def test_tars_give_what_the_folder_gives(pictures: Path, vae: Path, tmp_path: Path, tars: int) -> None:
    (tmp_path / "tars").mkdir()
    for number, part in enumerate(np.array_split(np.arange(9), tars)):
        samples = ({f"{i}.png": png(i), f"{i}.txt": b"ab"[i // 5 :][:1]} for i in part.tolist())
        write_tar(tmp_path / f"tars/{number}.tar", {name: data for one in samples for name, data in one.items()})
    make(pictures, tmp_path / "folder", vae)
    make(tmp_path / "tars" if tars > 1 else tmp_path / "tars/0.tar", tmp_path / "webdataset", vae)
    folder, webdataset = content(tmp_path / "folder"), content(tmp_path / "webdataset")
    assert folder.pop("prepare.json") != webdataset.pop("prepare.json") and folder == webdataset


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_pictures_without_classes_are_refused_before_they_are_encoded(kind: str, vae: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    if kind == "folder":
        (flat / "0.png").write_bytes(png(0))
    elif kind == "parquet":
        pq.write_table(pa.table({"image": [{"bytes": png(0)}]}), flat / "p.parquet")
    else:
        write_tar(flat / "n01440764.tar", {"n01440764/0.JPEG": png(0)})
    mend = {"folder": "put the pictures into one subfolder a class", "parquet": "give it a column 'label'"}
    with pytest.raises(
        InputError, match=f"flat: 1 items without classes: {mend.get(kind, 'give each picture a .cls')}"
    ):
        make(flat, tmp_path / "out", vae)
    assert not (tmp_path / "out").exists()


def interrupt(monkeypatch: pytest.MonkeyPatch, calls: int, error: type[BaseException]) -> None:
    """Raise ``error`` in place of the encoder's call number ``calls``."""
    original, left = Encoder.encode, [calls]

    def encode(self: Encoder, pictures: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return original(self, pictures)

    monkeypatch.setattr(Encoder, "encode", encode)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupted_and_given_again_is_the_same(
    error: type[BaseException], pictures: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(pictures, tmp_path / "straight", vae)
    straight = content(tmp_path / "straight")
    with monkeypatch.context() as patched:
        interrupt(patched, 7, error)
        if error is KeyboardInterrupt:
            assert make(pictures, tmp_path / "out", vae) == 130
        else:
            with pytest.raises(SystemExit):
                make(pictures, tmp_path / "out", vae)
    begun = content(tmp_path / "out")
    assert begun.items() < straight.items() and sum(name.endswith(".safetensors") for name in begun) == 2
    with pytest.raises(InputError, match="not complete"):
        MixedLatents(tmp_path / "out")
    (tmp_path / "out/.00002-of-00005.safetensors.12ab.tmp").write_bytes(b"of a killed process")
    kept = (tmp_path / "out/00001-of-00005.safetensors").stat().st_mtime_ns
    assert make(pictures, tmp_path / "out", vae) == 0
    assert content(tmp_path / "out") == straight
    assert (tmp_path / "out/00001-of-00005.safetensors").stat().st_mtime_ns == kept


def test_a_missing_shard_is_made_again_and_a_damaged_one_named(pictures: Path, vae: Path, tmp_path: Path) -> None:
    make(pictures, tmp_path / "out", vae)
    before, path = content(tmp_path / "out"), tmp_path / "out/00003-of-00005.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"00003-of-00005\.safetensors is damaged: remove it"):
        make(pictures, tmp_path / "out", vae)
    path.unlink()
    make(pictures, tmp_path / "out", vae, batch=1, workers=3)
    after = content(tmp_path / "out")
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if name != path.name)


def test_two_processes_make_what_one_makes(
    pictures: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(pictures, tmp_path / "one", vae)
    monkeypatch.setenv("WORLD_SIZE", "2")
    capsys.readouterr()
    for rank, last in (("1", "3 of 5 shards are left to other processes"), ("0", "latents of 9 pictures, 0 skipped")):
        monkeypatch.setenv("RANK", rank)
        assert make(pictures, tmp_path / "two", vae) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith(last)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(InputError, match="RANK '2' of WORLD_SIZE '2'"):
        make(pictures, tmp_path / "two", vae)


def test_damaged_pictures_are_named_counted_and_left_out(
    pictures: Path, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(pictures, tmp_path / "whole", vae)
    for name in ("a/2.png", "a/3.png", "b/5.png"):
        (pictures / name).write_bytes((pictures / name).read_bytes()[:60])
    capsys.readouterr()
    with pytest.raises(InputError, match="more than 2 pictures cannot be decoded: replace them, or allow more"):
        make(pictures, tmp_path / "out", vae, max_skipped=2)
    with pytest.raises(InputError, match="more than 1 pictures"):
        make(pictures, tmp_path / "out", vae, max_skipped=1)
    assert make(pictures, tmp_path / "out", vae, max_skipped=3) == 0
    said = capsys.readouterr()
    assert f"skipped: {pictures / 'a/3.png'} is not a whole PNG" in said.err
    assert said.out.splitlines()[-1].endswith("out: latents of 6 pictures, 3 skipped")
    whole, left = MixedLatents(tmp_path / "whole"), MixedLatents(tmp_path / "out")
    for place, picture in enumerate((0, 1, 4, 6, 7, 8)):
        for view in range(4):
            found, want = left[4 * place + view], whole[4 * picture + view]
            assert found["label"] == want["label"]
            torch.testing.assert_close(found["moments"], want["moments"], atol=1e-3, rtol=1e-3)


def test_a_shard_of_squares_may_come_out_empty(pictures: Path, vae: Path, tmp_path: Path) -> None:
    for name in ("a/2.png", "a/3.png"):
        (pictures / name).write_bytes(b"junk")
    make(pictures, tmp_path / "out", vae, square=True)
    assert len(Latents(tmp_path / "out")) == 14


def test_a_disk_that_cannot_be_read_is_no_damaged_picture(pictures: Path, vae: Path, tmp_path: Path) -> None:
    (pictures / "a/3.png").unlink()
    (pictures / "a/3.png").symlink_to(pictures / "a/2.png")

    def vanish(done: float, total: int) -> None:
        (pictures / "a/2.png").unlink(missing_ok=True)

    with pytest.raises(InputError, match=r"cannot read .*png: No such file"):
        make(pictures, tmp_path / "out", vae, workers=1, shard_size=9, batch=1, progress=vanish)


def test_a_full_disk_is_told_and_nothing_is_half_written(
    pictures: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt(patched, 0, KeyboardInterrupt)
        make(pictures, tmp_path / "out", vae)
    with (
        pytest.raises(InputError, match=r"cannot write .*00000-of-00005\.safetensors: File too large; choose another"),
        full_disk(),
    ):
        make(pictures, tmp_path / "out", vae)
    assert content(tmp_path / "out").keys() == {"prepare.json"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 64}, r"out was begun with another side \(32, now 64\): choose another --out"),
        ({"square": True}, r"another unit \(4, now None\)"),
        ({"flip": False}, "another flip"),
        ({"shard_size": 3}, "another shard_size"),
        ({"dtype": "bfloat16"}, r"another dtype \(float32, now bfloat16\)"),
        ({"unit": 3}, "sides of 3 pixels are not whole latents: use a multiple of 2"),
        ({"unit": 64}, "a unit of 1 to 32 pixels, not 64"),
        ({"shard_size": 0}, "shard-size must be at least 1, not 0"),
        ({"max_skipped": -1}, "max-skipped must be at least 0"),
        ({"device": "tpu"}, "no device|not supported"),
    ],
)
def test_other_and_bad_parameters_are_refused(
    options: dict[str, Any], message: str, pictures: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, 0, KeyboardInterrupt)
    make(pictures, tmp_path / "out", vae)
    before = content(tmp_path / "out")
    with pytest.raises(InputError, match=message):
        make(pictures, tmp_path / "out", vae, **options)
    assert content(tmp_path / "out") == before


def test_a_folder_from_before_there_were_squares_is_told(pictures: Path, vae: Path, tmp_path: Path) -> None:
    make(pictures, tmp_path / "out", vae)
    manifest = tmp_path / "out" / "prepare.json"
    manifest.write_text(
        json.dumps({key: value for key, value in json.loads(manifest.read_text()).items() if key != "crops"})
    )
    with pytest.raises(InputError, match="out was made without the squares of larger pictures: choose another --out"):
        make(pictures, tmp_path / "out", vae)


def test_other_pictures_and_autoencoders_are_refused(
    pictures: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    interrupt(monkeypatch, 0, KeyboardInterrupt)
    make(pictures, out, vae)
    with pytest.raises(InputError, match="begun with another vae"):
        make(pictures, out, save_tiny_autoencoder(tmp_path / "other", seed=1))
    with pytest.raises(InputError, match=r"scales latents by 0\.13025, training by 0\.18215"):
        make(pictures, out, save_tiny_autoencoder(tmp_path / "sdxl", scaling_factor=0.13025))
    assert make(pictures.rename(tmp_path / "moved"), out, vae) == 130
    (tmp_path / "moved/a/0.png").write_bytes(png(1))
    with pytest.raises(InputError, match="begun with another source"):
        make(tmp_path / "moved", out, vae)


def test_folders_that_hold_something_else_are_refused(pictures: Path, vae: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lies within the pictures"):
        make(pictures, pictures / "latents", vae)
    (tmp_path / "full/a").mkdir(parents=True)
    with pytest.raises(InputError, match="full holds a and was not begun by this command"):
        make(pictures, tmp_path / "full", vae)
    with pytest.raises(InputError, match="data kind 'toybox' holds no pictures: choose from folder, parquet"):
        prepare({"kind": "toybox"}, tmp_path / "out", vae)
    with pytest.raises(InputError, match=r"unknown config key 'data\.size'"):
        prepare({"kind": "folder", "path": pictures, "size": 3}, tmp_path / "out", vae)
    assert not (tmp_path / "out").exists()


def test_moments_beyond_half_precision_are_refused(pictures: Path, vae: Path, tmp_path: Path) -> None:
    wild = save_tiny_autoencoder(tmp_path / "wild") / "diffusion_pytorch_model.safetensors"
    save_file({key: value * (1e6 if key.startswith("quant") else 1) for key, value in load_file(wild).items()}, wild)
    with pytest.raises(InputError, match="moments of picture 0 are not finite in half precision"):
        make(pictures, tmp_path / "out", wild.parent)


def test_progress_counts_pictures(pictures: Path, vae: Path, tmp_path: Path) -> None:
    seen: list[tuple[float, int]] = []
    make(pictures, tmp_path / "out", vae, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 9) for i in range(9)]


SCRIPT = """
import sys, time
from pathlib import Path
from belvedere.apps import prepare

encode = prepare.Encoder.encode
prepare.Encoder.encode = lambda *arguments: (time.sleep(0.05), encode(*arguments))[1]
data, out, vae = map(Path, sys.argv[1:])
sys.exit(prepare.prepare(prepare.pictures_at(data), out, vae, side=32, unit=4, shard_size=1))
"""


@pytest.mark.slow
def test_killed_at_a_random_moment_and_ended_by_two_processes_is_the_same(
    pictures: Path, vae: Path, tmp_path: Path
) -> None:
    out, arguments = tmp_path / "out", [str(pictures), str(tmp_path / "out"), str(vae)]
    make(pictures, tmp_path / "straight", vae, shard_size=1)

    def start(**environment: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], env=environment)

    process, shards = start(), random.randrange(1, 7)
    wait_until(lambda: len(list(out.glob("*.safetensors"))) >= shards, process, 120)
    time.sleep(random.random() * 0.1)
    process.kill()
    process.wait()
    two = [start(RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    try:
        assert [process.wait(timeout=120) for process in two] == [0, 0]
    finally:
        for process in two:
            process.kill()
    assert content(out) == content(tmp_path / "straight")
