"""Codecs as model folders: ``model_index.json``, ``network/`` and, beside it, the integer tables both sides share.

The tables are made once, at the end of training, from the weights as they are stored. A file names the digest of all.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from belvedere.checkpoints import int8, store
from belvedere.checkpoints.components import CODEC, load_network
from belvedere.checkpoints.tensors import read_each
from belvedere.compression import exact_tables
from belvedere.compression.codec import Codec
from belvedere.compression.exact_tables import ExactTables
from belvedere.compression.segpic import SegPIC
from belvedere.compression.tile_codec import TileCodec
from belvedere.errors import InputError
from belvedere.kernels.layout import place

TABLES = "tables.safetensors"


def load_codec(name_or_path: str | Path, device: "torch.device | str | None" = None, *, fast: bool = False) -> Codec:
    """Return the codec of an embedded name, a folder or a hub id, in float32.

    ``device``, ``fast``: see ``store.load``. Raises ``InputError`` for anything unknown, damaged or inconsistent.
    """
    folder = store.resolve(name_or_path)
    digest = store.verify(folder, full=not fast)
    if store.read_json(folder / "model_index.json").get("_class_name") != CODEC:
        raise InputError(f"model {name_or_path} is no codec: choose one, such as segpic-photo")
    model = load_network(folder / "network", SegPIC, torch.float32)
    if not (folder / TABLES).is_file():
        raise InputError(f"{folder / TABLES} is missing; get the model again")
    tables = ExactTables.of(dict(read_each(folder / TABLES)), model.config)
    return Codec(place(model, store.choose_device(device)), tables, digest)


def save_codec(model: SegPIC, dtype: str, folder: Path, facts: dict[str, Any]) -> str:
    """Write a network, its weights in ``dtype``, as a codec's folder with its card; return the digest.

    Raises ``InputError`` for int8, and for weights that cannot be compressed with.
    """
    if dtype == "int8":
        raise InputError(int8.NO_CODEC)
    stored: SegPIC = nn.Module.to(copy.deepcopy(model), "cpu", getattr(torch, dtype))
    whole = nn.Module.to(copy.deepcopy(stored), torch.float32)
    tables = exact_tables.make(whole)
    TileCodec(whole, ExactTables.of(tables, whole.config))

    def write(fresh: Path) -> None:
        stored.save_pretrained(fresh / "network", safe_serialization=True)
        save_file(tables, fresh / TABLES)
        (fresh / "model_index.json").write_text(json.dumps({"_class_name": CODEC}) + "\n")

    return store.save_folder(write, folder, facts)
