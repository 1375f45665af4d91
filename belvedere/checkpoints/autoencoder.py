"""The autoencoder of latents by itself: found in a folder or on the hub, checked, loaded."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere.checkpoints import store
from belvedere.checkpoints.components import known_class, read_json
from belvedere.checkpoints.published import AUTOENCODERS, load_diffusers, reading
from belvedere.checkpoints.tensors import one_line
from belvedere.errors import InputError
from belvedere.files import expanded

if TYPE_CHECKING:
    import torch

_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


def find_autoencoder(name_or_path: str | Path) -> Path:
    """Return the folder of an autoencoder that diffusers saved: itself, or the ``vae`` of a pipeline.

    Either is a folder, an embedded model's name or a hub id ``owner/name[@revision]``, of which only the config and
    safetensors of the autoencoder are fetched. Raises ``InputError`` when there is none.
    """
    name = str(name_or_path)
    folder = store.EMBEDDED / name if name in store.embedded() else expanded(name)
    if not folder.exists() and name.count("/") == 1:
        folder = _fetch(name)
    for place in (folder, folder / "vae"):
        if (place / _CONFIG).is_file():
            return place
    raise InputError(
        f"no autoencoder {name}: give a folder with config.json or vae/config.json, or a hub id owner/name"
    )


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = hub_id.partition("@")
    files = [f"{folder}{file}" for folder in ("", "vae/") for file in (_CONFIG, _WEIGHTS)]
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=files))
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)[:160]}"
        raise InputError(f"autoencoder {hub_id}: no such folder, and the hub did not give it ({reason})") from error


def load_autoencoder(folder: Path, dtype: "torch.dtype", device: "torch.device") -> Any:
    """Return the AutoencoderKL in a folder, ready to encode; ``InputError`` if it is of another class or damaged."""
    cls = known_class(AUTOENCODERS, read_json(folder / _CONFIG).get("_class_name"), folder / _CONFIG)
    with reading(folder):
        return load_diffusers(cls, folder, dtype).to(device)
