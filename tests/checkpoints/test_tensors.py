"""Other people's tensor files: the good ones come out the same, the hostile ones are refused and run nothing."""

import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from belvedere.checkpoints import scan, tensors
from belvedere.errors import InputError

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}


class Gadget:
    """Pickles to a call of ``os.system`` that leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.mark}",)


def assert_same(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[key], WEIGHTS[key]) and found[key].dtype == WEIGHTS[key].dtype for key in WEIGHTS)


def test_reads_safetensors(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    assert_same(tensors.read_state_dict(tmp_path / "w.safetensors"))
    assert tensors.header(tmp_path / "w.safetensors") == {"a.weight": (2, 3), "a.bias": (2,)}


@pytest.mark.parametrize("modern", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["zip", "legacy"])
def test_reads_a_torch_checkpoint(tmp_path: Path, modern: bool) -> None:
    path = tmp_path / "w.pth"
    wrapped = OrderedDict((f"module._orig_mod.{key}", value) for key, value in WEIGHTS.items())
    torch.save({"epoch": 3, "model": {}, "ema": wrapped}, path, _use_new_zipfile_serialization=modern)
    assert_same(tensors.read_state_dict(path))


@pytest.mark.parametrize("container", tensors.CONTAINERS)
def test_unwraps(container: str) -> None:
    assert_same(tensors.unwrap({container: {"state_dict": WEIGHTS}, "lr": 0.1}, "x.pth"))


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        ([1, 2], "holds a Python list, not named tensors"),
        ({"w": torch.ones(1), "epoch": 3}, "holds a Python int under 'epoch'"),
        ({3: torch.ones(1)}, "under '3'"),
        ({"state_dict": {}}, "holds no tensors"),
        ({"a._orig_mod.b": torch.ones(1), "a.b": torch.ones(1)}, "two tensors have one name"),
    ],
)
def test_what_is_not_tensors_is_named(loaded: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tensors.unwrap(loaded, "x.pth")


@pytest.mark.parametrize("modern", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["zip", "legacy"])
def test_a_pickle_gadget_does_not_run(tmp_path: Path, modern: bool) -> None:
    path, mark = tmp_path / "w.pth", tmp_path / "mark"
    torch.save({"w": torch.ones(1), "x": Gadget(mark)}, path, _use_new_zipfile_serialization=modern)
    with pytest.raises(InputError, match=r"holds a Python object \(posix.system\).* was not run"):
        tensors.read_state_dict(path)
    assert not mark.exists()


def test_a_renamed_pickle_is_refused_by_name(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    raw, archive = tmp_path / "raw.safetensors", tmp_path / "zip.safetensors"
    raw.write_bytes(pickle.dumps(Gadget(mark)))
    torch.save({"w": Gadget(mark)}, archive)
    for path in (raw, archive):
        with pytest.raises(InputError, match=r"renamed \.safetensors; refused"):
            tensors.read_state_dict(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 2) + b"{]",
        struct.pack("<Q", 64) + b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}         ',
    ],
    ids=["empty", "short", "header of a terabyte", "not JSON", "no data"],
)
def test_a_damaged_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"w.safetensors is damaged .* get it again"):
        tensors.read_state_dict(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    save_file({"good": torch.ones(3), "bad": torch.tensor([1.0, value]).half()}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="'bad' holds NaN or infinity"):
        tensors.read_state_dict(tmp_path / "w.safetensors")


def test_an_unknown_ending_or_a_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.npz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"w.npz: not a weights file .* \.safetensors, \.pth"):
        tensors.read_state_dict(tmp_path / "w.npz")
    with pytest.raises(InputError, match="no weights file at"):
        tensors.read_state_dict(tmp_path / "none.pth")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..\\x", "C:\\x"])
def test_archive_names_that_point_outside_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"0")
    with pytest.raises(InputError, match="points outside"):
        scan.check_archive(path)


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", bytes(50 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="compressed"):
        tensors.read_state_dict(path)


def test_overlapping_archive_entries_are_refused(tmp_path: Path) -> None:
    """Many directory entries over one piece of data: stored, yet larger together than the file."""
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/0", bytes(1 << 16))
        first = archive.filelist[0]
        for i in range(1, 20):
            clone = zipfile.ZipInfo(f"w/{i}")
            clone.header_offset, clone.CRC = first.header_offset, first.CRC
            clone.file_size = clone.compress_size = first.file_size
            archive.filelist.append(clone)
    with pytest.raises(InputError, match="more than the file has"):
        scan.check_archive(path)


def test_two_archive_entries_on_the_same_bytes_are_refused(tmp_path: Path) -> None:
    """They are not larger together than the file, which has other bytes before them."""
    path = tmp_path / "w.pth"
    for start in (0, 10, 1 << 15):
        path.write_bytes(bytes(1 << 17))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("w/data.pkl", bytes(1 << 16))
            archive.writestr("w/1", bytes(1 << 10))
            first, second = archive.filelist
            second.header_offset = first.header_offset + start
        with pytest.raises(InputError, match="zip entries lie on the same bytes"):
            scan.check_archive(path)


def test_a_tensor_that_unfolds_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"w": torch.zeros(1).expand(1 << 34)}, path)
    assert path.stat().st_size < 1 << 16
    with pytest.raises(InputError, match="far more than the file's size"):
        tensors.read_state_dict(path)


def test_a_file_of_noise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.ckpt"
    path.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(InputError, match=r"w\.ckpt: not a torch weights file"):
        tensors.read_state_dict(path)


def test_the_reader_is_fenced_in() -> None:
    """The second fence, behind the weights-only reader: what the child process may not do whatever it is given."""
    program = (
        "import os, sys; from belvedere.checkpoints import converter\n"
        "converter.limit_memory(64 << 20)\n"
        "try: bytes(256 << 20)\n"
        "except MemoryError: print('memory')\n"
        "sys.addaudithook(converter.guard)\n"
        "try: os.system('echo ran')\n"
        "except PermissionError: print('system')\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert done.stdout.split() == ["memory", "system"], done.stderr
