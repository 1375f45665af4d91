import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from belvedere.data.picture_batches import PictureBatch, writing_batch
from belvedere.errors import InputError


def some(count: int = 7, height: int = 4, width: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def written(path: Path, pictures: torch.Tensor) -> Path:
    with writing_batch(path, len(pictures), (pictures.shape[2], pictures.shape[3])) as writer:
        for block in pictures.split(3):
            writer.add(block)
    return path


def test_numpy_reads_what_is_written(tmp_path: Path) -> None:
    pictures = some()
    with np.load(written(tmp_path / "a.npz", pictures), allow_pickle=False) as found:
        assert found.files == ["arr_0"] and found["arr_0"].dtype == np.uint8
        assert (found["arr_0"] == pictures.permute(0, 2, 3, 1).numpy()).all()
    assert (tmp_path / "a.npz").read_bytes() == written(tmp_path / "b.npz", pictures).read_bytes()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path: Path, save: object) -> None:
    pictures = some()
    mean, covariance = np.arange(3.0), np.eye(3, dtype=np.float32)
    save(tmp_path / "a.npz", pictures.permute(0, 2, 3, 1).numpy(), mu=mean, sigma=covariance)  # type: ignore[operator]
    batch = PictureBatch(tmp_path / "a.npz")
    assert (batch.count, batch.size) == (7, (4, 6))
    assert torch.equal(torch.stack(list(batch.pictures(range(7)))), pictures)
    assert torch.equal(torch.stack(list(batch.pictures(range(1, 7, 2)))), pictures[1::2])
    found = batch.array("mu", (3,)), batch.array("sigma", (3, 3)), batch.array("mu_s", (3,))
    assert found[0] is not None and found[0].tolist() == [0, 1, 2] and found[0].dtype == torch.float64
    assert found[1] is not None and torch.equal(found[1], torch.eye(3, dtype=torch.float64)) and found[2] is None


def test_moments_of_another_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    pictures = some().permute(0, 2, 3, 1).numpy()
    for mean, message in (
        (np.zeros(4), r"mu is \(4,\) of float64, not \(3,\)"),
        (np.zeros(3, np.int64), r"mu is \(3,\) of int64, not \(3,\) of floats"),
        (np.array([1, np.nan, 0]), "mu holds NaN"),
    ):
        np.savez(path, pictures, mu=mean)
        with pytest.raises(InputError, match=message):
            PictureBatch(path).array("mu", (3,))


def test_unfinished_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="2 pictures are missing"),
        writing_batch(tmp_path / "a.npz", 5, (4, 6)) as file,
    ):
        file.add(some(3))
    with pytest.raises(ValueError, match="into 2 of"), writing_batch(tmp_path / "a.npz", 2, (4, 6)) as file:
        file.add(some(3))
    assert list(tmp_path.iterdir()) == []


def archive(path: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def npy(shape: tuple[int, ...], content: bytes, *, kind: str = "|u1", by_columns: bool = False) -> bytes:
    stream = io.BytesIO()
    facts = {"descr": kind, "fortran_order": by_columns, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, facts)
    return stream.getvalue() + content


def objects() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()


PLAIN = ("arr_0.npy", npy((2, 4, 6, 3), bytes(144)))
HOSTILE = {
    "no zip": (None, "is not a whole NumPy archive"),
    "no pictures": ([("mu.npy", npy((2, 4, 6, 3), bytes(144)))], "must hold arr_0, once"),
    "twice": ([PLAIN, PLAIN], "must hold arr_0, once"),
    "very many": ([PLAIN, *((f"{i}.npy", b"") for i in range(64))], "among at most 64 arrays"),
    "shorter than it says": ([("arr_0.npy", npy((2, 4, 6, 3), bytes(143)))], "not as long as it says"),
    "longer than it says": ([("arr_0.npy", npy((2, 4, 6, 3), bytes(145)))], "not as long as it says"),
    "claims terabytes": ([("arr_0.npy", npy((10**6, 10**3, 10**3, 3), b""))], "not as long as it says"),
    "huge pictures": ([("arr_0.npy", npy((0, 10**5, 10**5, 3), b""))], "at most 64000000 pixels"),
    "negative": ([("arr_0.npy", npy((-1, -1, 4, 3), bytes(12)))], "not a whole NumPy archive"),
    "none": ([("arr_0.npy", npy((0, 4, 6, 3), b""))], "pictures must be"),
    "floats": ([("arr_0.npy", npy((2, 1, 1, 3), bytes(24), kind="<f4"))], "arr_0 is .* of float32: pictures must be"),
    "by columns": ([("arr_0.npy", npy((2, 4, 6, 3), bytes(144), by_columns=True))], "not a whole NumPy archive"),
    "objects": ([("arr_0.npy", objects())], "not a whole NumPy archive"),
    "a pickle": ([("arr_0.npy", pickle.dumps([1]))], "not a whole NumPy archive"),
    "code in the header": (
        [("arr_0.npy", b"\x93NUMPY\x01\x00" + (200).to_bytes(2, "little") + b"__import__('os').abort()".ljust(200))],
        "not a whole NumPy archive",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused(tmp_path: Path, name: str) -> None:
    members, message = HOSTILE[name]
    path = tmp_path / "a.npz"
    if members is None:
        path.write_bytes(b"PK\x03\x04 and nothing more")
    elif name == "twice":
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive(path, *members)
    else:
        archive(path, *members)
    with pytest.raises(InputError, match=message):
        PictureBatch(path)


def test_damage_within_is_found(tmp_path: Path) -> None:
    content = bytearray(written(tmp_path / "a.npz", some()).read_bytes())
    content[200] ^= 1
    (tmp_path / "b.npz").write_bytes(content)
    with pytest.raises(InputError, match="not a whole NumPy archive"):
        list(PictureBatch(tmp_path / "b.npz").pictures(range(7)))
