"""Checkpoint files made to mislead: headers, archives, pickles, configs, folders."""

import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save, save_file

import belvedere
from belvedere.apps.models_exchange import import_official
from belvedere.checkpoints import int8, store
from belvedere.checkpoints.autoencoder import find_autoencoder
from belvedere.checkpoints.concepts import load_concept
from belvedere.checkpoints.official import load_official
from belvedere.checkpoints.official_neti import official_concept
from belvedere.checkpoints.tensors import read_state_dict
from tests.attacks.corpus import MARK, Attack, written
from tests.attacks.pickles import GIGABYTE, as_archive, as_legacy, as_pickle, gadgets
from tests.attacks.published import published
from tests.conftest import save_tiny_model
from tests.official_segpic import golden_weights

WEIGHTS = "network/diffusion_pytorch_model.safetensors"
OBJECT = r"holds a Python object|has opcode \w+, which no torch file has"


def checkpoints(folder: Path) -> list[Attack]:
    """Write the files below ``folder``; return the attacks."""
    attacks = [*_headers(folder), *_archives(folder), *_pickles(folder), *_tensors(folder), *_models(folder)]
    attacks += [*_links(folder), *_official(folder), *_codecs(folder)]
    return [*attacks, *published(folder / "published", folder / "tiny")]


def _safetensors(header: Any, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def _entry(start: int, stop: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


def _headers(folder: Path) -> Iterator[Attack]:
    """Safetensors whose header does not tell the truth."""
    good, eight = _entry(0, 8), b"\0" * 8
    twice = b'{"w":%(e)s,"w":%(e)s}' % {b"e": json.dumps(good).encode()}
    files: dict[str, bytes] = {
        "header longer than the file": _safetensors({"w": good}, eight, size=4000),
        "header of 4 GB": _safetensors({"w": good}, eight, size=4 << 30),
        "header of 2^64 - 1": _safetensors({"w": good}, eight, size=2**64 - 1),
        "header of no bytes": struct.pack("<Q", 0) + eight,
        "header of 24 MB": _safetensors({f"{i:07}": _entry(0, 0) for i in range(400_000)}),
        "header that is a list": _safetensors([1, 2]),
        "header nested without end": _safetensors(b'{"w":' + b"[" * 100_000),
        "header that is not text": _safetensors(b"{\xff\xfe\x00}"),
        "overlapping tensors": _safetensors({"a": good, "b": _entry(4, 12)}, b"\0" * 12),
        "a hole between tensors": _safetensors({"a": good, "b": _entry(16, 24)}, b"\0" * 24),
        "bytes after the last tensor": _safetensors({"a": good}, b"\0" * 64),
        "a name twice": _safetensors(twice, eight),
        "offsets that run backwards": _safetensors({"w": _entry(8, 0, [2])}, eight),
        "a negative offset": _safetensors({"w": _entry(-8, 0, [2])}, eight),
        "offsets beyond the file": _safetensors({"w": _entry(0, 1 << 40, [1 << 38])}, eight),
        "a shape of another size": _safetensors({"w": _entry(0, 8, [3])}, eight),
        "a shape that overflows": _safetensors({"w": _entry(0, 8, [1 << 32, 1 << 32])}, eight),
        "a negative shape": _safetensors({"w": _entry(0, 8, [-2])}, eight),
        "numbers of no known kind": _safetensors({"w": _entry(0, 8, [2], "F31")}, eight),
        "metadata that are not text": _safetensors({"__metadata__": {"a": 1}, "w": good}, eight),
        "cut short": save({"w": torch.zeros(64)})[:-1],
    }
    for name, content in files.items():
        path = written(folder / f"header-{name}.safetensors", content)
        yield Attack(name, partial(read_state_dict, path), "is damaged .*get it again")
    path = written(folder / "empty-tensors.safetensors", _safetensors({"w": _entry(0, 0, [0, 5])}))
    yield Attack("a tensor of no numbers", partial(read_state_dict, path), "", lambda x: x["w"].shape == (0, 5))  # type: ignore[index]


def _zip(*entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED, link: bool = False) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            info.external_attr = (0o120777 if link else 0o644) << 16
            archive.writestr(info, content)
    return stream.getvalue()


def _archives(folder: Path) -> Iterator[Attack]:
    """Zip and npz archives under the names of weights."""
    bomb, npz, link = bytes(40 << 20), io.BytesIO(), ("w/data.pkl", b"/etc/passwd")
    np.savez_compressed(npz, w=np.zeros(1 << 22, np.float32))
    files = {
        "zip bomb": ("w.pth", _zip(("w/data.pkl", bomb), method=zipfile.ZIP_DEFLATED), "is compressed or encrypted"),
        "npz bomb": ("w.bin", npz.getvalue(), "is compressed or encrypted"),
        "npz bomb by its name": ("w.npz", npz.getvalue(), "not a weights file by its ending"),
        "npz renamed safetensors": ("n.safetensors", npz.getvalue(), "renamed .safetensors; refused"),
        "name with ..": ("dots.pt", _zip(("../../data.pkl", b"x")), "points outside the archive"),
        "absolute name": ("root.pt", _zip(("/etc/data.pkl", b"x")), "points outside the archive"),
        "name of another system": ("drive.pt", _zip(("C:\\data.pkl", b"x")), "points outside the archive"),
        "link in an archive": ("link.ckpt", _zip(link, link=True), "is a link; refused"),
        "two pickles": ("two.ckpt", _zip(("a/data.pkl", b"x"), ("b/data.pkl", b"x")), "2 entries data.pkl"),
        "archive without a pickle": ("none.pth", _zip(("w/version", b"3")), "a zip archive without data.pkl"),
        "directory cut off": ("cut.pth", _zip(("w/data.pkl", b"x" * 99))[:-30], "neither a zip archive nor a pickle"),
        "overlapping entries": ("lap.pth", _overlapping(), "more than the file has"),
        "two entries on the same bytes": ("same.pth", _overlapping(2, 1 << 17), "zip entries lie on the same bytes"),
        "noise": ("noise.pth", bytes(range(256)) * 64, "neither a zip archive nor a pickle"),
        "empty": ("empty.pth", b"", "neither a zip archive nor a pickle"),
        "tar": ("w.pth.tar", b"data.pkl" + bytes(1016), "neither a zip archive nor a pickle"),
    }
    for name, (file, content, message) in files.items():
        yield Attack(name, partial(read_state_dict, written(folder / f"archives-{file}", content)), message)


def _overlapping(count: int = 100, padding: int = 0) -> bytes:
    """Return an archive of entries with the bytes of the first; ``padding``: how many more it has."""
    stream = io.BytesIO(bytes(padding))
    stream.seek(padding)
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("w/data.pkl", bytes(1 << 16))
        first = archive.filelist[0]
        for i in range(1, count):
            clone = zipfile.ZipInfo(f"w/data/{i}")
            clone.header_offset, clone.CRC = first.header_offset, first.CRC
            clone.file_size = clone.compress_size = first.file_size
            archive.filelist.append(clone)
    return stream.getvalue()


def _pickles(folder: Path) -> Iterator[Attack]:
    """Every family of gadgets in the three forms of torch's files, and under other names."""
    forms: dict[str, Callable[[bytes], bytes]] = {".pth": as_archive, ".pt": as_legacy, ".bin": as_pickle}
    for family, body in gadgets(folder / MARK).items():
        for suffix, form in forms.items():
            path = written(folder / f"gadget-{family}{suffix}", form(body))
            yield Attack(f"{family} in {suffix}", partial(read_state_dict, path), OBJECT)
    body = gadgets(folder / MARK)["os.system"]
    for name, content in (("pickle", as_pickle(body)), ("archive", as_archive(body))):
        path = written(folder / f"renamed-{name}.safetensors", content)
        yield Attack(f"{name} renamed safetensors", partial(read_state_dict, path), "renamed .safetensors; refused")
    path = written(folder / "mapper-steps-9.pt", as_archive(b"}" + body + b"s"))
    yield Attack("gadget in a mapper of NeTI", partial(official_concept, path), OBJECT)
    endless = written(folder / "endless.pth", as_archive(b"(" * 1_100_000))
    yield Attack("pickle of a million steps", partial(read_state_dict, endless), "more than 1000000 steps")
    claims = written(folder / "claims.pth", as_archive(b"X\xff\xff\xff\x7fx"))
    yield Attack("text of 2 GB in a pickle", partial(read_state_dict, claims), "its pickle is damaged")
    memory = written(folder / "memory.pth", as_archive(GIGABYTE))
    yield Attack("a gigabyte in 30 bytes", partial(read_state_dict, memory), OBJECT)
    legacy = written(folder / "no-torch.bin", as_pickle(b"}X\x01\x00\x00\x00aK\x01s"))
    yield Attack("pickle of something else", partial(read_state_dict, legacy), "a pickle of something else")


def _saved(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def _tensors(folder: Path) -> Iterator[Attack]:
    """Torch files without gadgets, whose tensors are not what they should be."""
    loop: dict[str, Any] = {"w": torch.ones(1)}
    loop["state_dict"] = loop
    contents: dict[str, tuple[Any, str]] = {
        "unfolds.pth": ({"w": torch.zeros(1).expand(1 << 34)}, "far more than the file's size"),
        "nan.pth": ({"w": torch.tensor([1.0, float("nan")])}, "'w' holds NaN or infinity"),
        "number.pth": ({"w": torch.ones(1), "epoch": 3}, "holds a Python int under 'epoch'"),
        "list.pth": ([torch.ones(1)], "holds a Python list"),
        "sparse.pth": ({"w": torch.eye(3).to_sparse()}, "sparse, quantised or has no data"),
        "loop.pth": (loop, "holds a"),
        "nothing.pth": ({}, "holds no tensors"),
        "twice.pth": ({"a._orig_mod.b": torch.ones(1), "a.b": torch.ones(1)}, "two tensors have one name"),
    }
    for name, (content, message) in contents.items():
        yield Attack(name, partial(read_state_dict, _saved(folder / f"tensors-{name}", content)), message)
    infinite = folder / "inf.safetensors"
    save_file({"w": torch.tensor([float("inf")], dtype=torch.bfloat16)}, infinite)
    yield Attack("infinite weights", partial(read_state_dict, infinite), "'w' holds NaN or infinity")
    path = _saved(folder / "fine.pth.tar", {"epoch": 1, "state_dict": {"module.w": torch.arange(3.0)}})
    yield Attack("a right one", partial(read_state_dict, path), "", lambda x: x["w"].tolist() == [0, 1, 2])  # type: ignore[index]


def _models(folder: Path) -> Iterator[Attack]:
    """Model folders whose configs, indexes or weights are wrong."""
    tiny = save_tiny_model(folder / "tiny")
    (tiny / "card.json").unlink()
    (tiny / "manifest.json").unlink(missing_ok=True)
    stage = json.loads((tiny / "network/config.json").read_text())["stage_configs"]
    deep = "[" * 5000 + "]" * 5000
    configs: dict[str, tuple[Any, str]] = {
        "unknown key": ({"surprise": 1}, "unknown key 'surprise'"),
        "key of a class": (
            {"_class_name": "DiMR", "auto_map": {"AutoModel": "owner/name--x.Y"}},
            "unknown key 'auto_map'",
        ),
        "stages that are a number": ({"stage_configs": 5}, "config.json: "),
        "stage that names code": ({"stage_configs": [{**stage[0], "attention": "os.system"}]}, "unknown stage key"),
        "too many channels": ({"channels": 10**9}, "larger than any size"),
        "a thousand blocks": ({"stage_configs": [{**stage[0], "blocks": 1000}, stage[1]]}, "config.json"),
        "wide stages": ({"stage_configs": [{**stage[0], "dim": 65536, "hidden": 65536}, stage[1]]}, "config.json"),
        "other classes": ({"num_classes": 6}, "of another shape"),
        "text for a number": ({"channels": "3"}, "config.json"),
        "NaN for a number": ({"class_std": float("nan"), "channels": float("nan")}, "config.json"),
    }
    for name, (change, message) in configs.items():
        yield _model(folder, tiny, name, partial(_edit, "network/config.json", change), message)
    indexes: dict[str, tuple[Any, str]] = {
        "class of the system": ({"_class_name": "os.system"}, "is not one Belvedere loads"),
        "component of another library": ({"network": ["subprocess", "Popen"]}, "is not one Belvedere loads"),
        "scheduler that is a function": ({"scheduler": ["os", "system"]}, "is not one Belvedere loads"),
        "labels without end": ({"id2label": {str(i): "x" * 10 for i in range(200_000)}}, "larger than 4 MB"),
        "autoencoder by a path": ({"vae": ["../../x", "AutoencoderKL"]}, "cannot be loaded|missing"),
    }
    for name, (change, message) in indexes.items():
        yield _model(folder, tiny, name, partial(_edit, "model_index.json", change), message)
    texts = {"config nested too deep": deep, "config cut off": '{"channels": 3', "config of nothing": ""}
    for name, text in texts.items():
        yield _model(folder, tiny, name, partial(_put, "network/config.json", text), "network/config.json: ")
    again = '{"channels": 3, "channels": 4}'
    yield _model(folder, tiny, "key twice", partial(_put, "network/config.json", again), "a key is there twice")
    for name, weights, message in (
        ("foreign tensors", lambda w: {**w, "stranger": torch.zeros(1)}, "1 unexpected"),
        ("missing tensors", lambda w: dict(list(w.items())[1:]), "1 missing"),
        ("integers for weights", lambda w: {k: x.to(torch.int8) for k, x in w.items()}, "quantised"),
        ("NaN in weights", lambda w: {k: x * float("nan") for k, x in w.items()}, "holds NaN"),
    ):
        yield _model(folder, tiny, name, partial(_reweigh, weights), message)
    yield _model(folder, tiny, "weights in two files", _double, "tensors in two of its files")
    scale = f"stages.0.head.weight{int8.SCALE}"
    for name, weights, message in (
        ("int8 with scales that are not finite", lambda w: {**w, scale: w[scale] / 0}, "not finite or below 0"),
        ("int8 with fewer scales", lambda w: {**w, scale: w[scale][1:].clone()}, "has no scales of float32"),
        ("int8 without scales", lambda w: {k: x for k, x in w.items() if k != scale}, "has no scales of float32"),
        ("scales of nothing", lambda w: {**w, f"x{int8.SCALE}": torch.ones(1)}, "1 unexpected"),
    ):
        yield _model(folder, tiny, name, partial(_pack, weights), message)
    shard = {"weight_map": {"stages.0.head.weight": "../../other.safetensors"}}
    index = partial(_put, "network/diffusion_pytorch_model.safetensors.index.json", json.dumps(shard))
    yield _model(folder, tiny, "an index that leads out", index, "does not list the tensors of the files beside it")


def _model(folder: Path, tiny: Path, name: str, change: Callable[[Path], object], message: str) -> Attack:
    path = folder / f"model-{name}"
    shutil.copytree(tiny, path)
    change(path)
    return Attack(f"model: {name}", partial(belvedere.load, path, device="cpu"), message)


def _edit(file: str, change: dict[str, Any], folder: Path) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def _put(file: str, text: str, folder: Path) -> None:
    (folder / file).write_text(text)


def _reweigh(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], folder: Path) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def _pack(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], folder: Path) -> None:
    _reweigh(lambda weights: {key: x.half() for key, x in weights.items()}, folder)
    int8.quantise(folder)
    _reweigh(change, folder)


def _double(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "network/copy.safetensors")


def _links(folder: Path) -> Iterator[Attack]:
    """Files that are none: links, pipes, devices; and names that lead out."""
    for name, target in (("device", "/dev/zero"), ("nowhere", "/no/such/file")):
        model = folder / f"link-{name}"
        shutil.copytree(folder / "tiny", model)
        (model / WEIGHTS).unlink()
        (model / WEIGHTS).symlink_to(target)
        yield Attack(f"weights that are a link to {name}", partial(belvedere.load, model), "no plain file")
    pipe = folder / "pipe"
    shutil.copytree(folder / "tiny", pipe)
    (pipe / "network/config.json").unlink()
    os.mkfifo(pipe / "network/config.json")
    yield Attack("config that is a pipe", partial(belvedere.load, pipe), "no plain file")
    yield Attack("model name with ..", partial(store.resolve, "../../etc/passwd"), "no model")
    yield Attack("hub id with ..", partial(store.resolve, "owner/..", download=False), "no model|not on this machine")
    yield Attack("autoencoder of nothing", partial(find_autoencoder, "../nowhere"), "no such folder|no autoencoder")


def _official(folder: Path) -> Iterator[Attack]:
    """Files of the five systems that are not theirs."""
    other = folder / "other.safetensors"
    save_file({"stages.0.weight": torch.zeros(1)}, other)
    for system in ("dimr", "fitv2", "nvist", "segpic"):
        config = {"near": 0.1, "far": 2.0} if system == "nvist" else None
        yield Attack(f"not of {system}", partial(load_official, system, other, config), "these are not|not published")
    yield from _shapes(folder)
    fields = {"version": 1, "token": "<x>", "super_category": "cat", "base": {"name": "m", "text_encoders": []}}
    mapper = {"widths": [16], "hidden": 10**9}
    facts = json.dumps({**fields, "mapper": mapper, "truncation": {"lowest": 1}})
    concept = folder / "concept.safetensors"
    save_file({"w": torch.zeros(1)}, concept, {"belvedere_concept": facts})
    yield Attack("concept of endless width", partial(load_concept, concept), "concept.safetensors: ")
    save_file({"w": torch.zeros(1)}, folder / "bare.safetensors")
    yield Attack("concept without its facts", partial(load_concept, folder / "bare.safetensors"), "no concept file")


def _shapes(folder: Path) -> Iterator[Attack]:
    """Official files of one system whose tensors have other axes or numbers than its own."""
    halves = {f"stages.0.blocks.0.block2.{half}.weight": torch.zeros(2, 2 + i) for i, half in enumerate(("w0", "w1"))}
    table = {"stages.0.class_embeds.weight": torch.zeros(3)}
    segpic = golden_weights(8, "segpic-a")
    for name, system, weights, config, message in (
        ("one axis", "dimr", table, None, "these are not dimr weights"),
        ("halves", "dimr", halves, {"channels": 4, "stage_configs": []}, "of different shapes"),
        ("no axes", "fitv2", {"x_embedder.proj.weight": torch.zeros(())}, None, "these are not fitv2 weights"),
        ("one half", "segpic", {"dyn_encoder.k_sp_gen.0.weight": torch.zeros(3, 1, 1, 1)}, None, "not segpic weights"),
        ("int8", "segpic", {key: x.to(torch.int8) for key, x in segpic.items()}, None, "is of torch.int8, not"),
        ("complex", "segpic", {key: x.to(torch.complex64) for key, x in segpic.items()}, None, "torch.complex64, not"),
    ):
        path = folder / f"official-{name}.safetensors"
        save_file(weights, path)
        yield Attack(f"{name} of {system}", partial(load_official, system, path, config), message)


def _codecs(folder: Path) -> Iterator[Attack]:
    """Official files of SegPIC that no codec can be made of."""
    weights = golden_weights(8, "segpic-a")
    far = weights["entropy_bottleneck.quantiles"] - 1e9
    large = weights["h_mean_s.0.weight"] + 1e6
    for name, change, message in (
        ("median", {"entropy_bottleneck.quantiles": far}, "z of a model has medians up to 1e.09"),
        ("sums", {"h_mean_s.0.weight": large}, "exact sums take up to"),
    ):
        path = folder / f"codec-{name}.safetensors"
        save_file(weights | change, path)
        make = partial(import_official, path, "segpic", folder / f"codec-{name}")
        yield Attack(f"codec without end: {name}", make, message)
