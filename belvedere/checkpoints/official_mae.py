"""Published weights that NViST's training begins with: masked autoencoders (He et al., arXiv 2111.06377), ViT-B/16."""

import re
from collections.abc import Mapping
from pathlib import Path

from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from belvedere.checkpoints.official_nvist import NAMES
from belvedere.checkpoints.tensors import read_state_dict, unwrap
from belvedere.errors import InputError
from belvedere.synthesis.mae import MAE
from belvedere.synthesis.nvist import NViST

Weights = Mapping[str, object] | str | Path
_OURS = "encoder.class_token"
_ENCODER = re.compile(r"(cls_token|patch_embed\.|blocks\.)")
_OF_DECODER = re.compile(r"decoder\.blocks\.\d+\.(attention\.out|mlp\.\w+)\.")
"""What NViST's decoder has in common with a plain transformer of its width."""


def mae_names(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of an official masked autoencoder under the names of ``MAE``.

    The names may begin with "encoder.", as in NViST's own checkpoints; those of ``MAE`` stay. Fixed positions are
    dropped.
    """
    if _OURS in official:
        return dict(official)
    ours = {}
    for name, tensor in official.items():
        name = name.removeprefix("encoder.")
        if name in ("pos_embed", "decoder_pos_embed"):
            continue
        name = f"encoder.{name}" if _ENCODER.match(name) else name.replace("decoder_pred.", "head.")
        for theirs, mine in NAMES:
            name = name.replace(theirs, mine)
        ours[name] = tensor
    return ours


def start_encoder(model: MAE | NViST, weights: Weights) -> list[str]:
    """Load into ``model`` what fits it, by name and shape, of a masked autoencoder; return the names that were loaded.

    ``weights``: a file such as ``mae_visualize_vit_base.pth``, the folder that a ``MAE`` was saved in, or a state dict,
    inside {"model": ...} or not. A ``MAE`` takes all that it has, an ``NViST`` its encoder. Raises ``InputError`` where
    nothing fits.
    """
    return _load(model, mae_names(_read(weights)))


def start_decoder(model: NViST, weights: Weights) -> list[str]:
    """Load into the decoder of ``model`` what fits of a masked autoencoder's encoder; return the names of it.

    That is, as published, the last map of each attention and the MLPs; the rest stays as it is. ``weights`` and errors
    as in ``start_encoder``.
    """
    names = {
        name.replace("encoder.", "decoder.", 1): tensor
        for name, tensor in mae_names(_read(weights)).items()
        if name.startswith("encoder.")
    }
    return _load(model, {name: tensor for name, tensor in names.items() if _OF_DECODER.match(name)})


def _read(weights: Weights) -> dict[str, Tensor]:
    if not isinstance(weights, str | Path):
        return unwrap(weights, "weights")
    path = Path(weights)
    return read_state_dict(path / SAFETENSORS_WEIGHTS_NAME if path.is_dir() else path)


def _load(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    state = model.state_dict()
    fitting = {name: x for name, x in weights.items() if name in state and state[name].shape == x.shape}
    if not fitting:
        raise InputError("nothing in these weights fits by name and shape: give those of a transformer of this width")
    model.load_state_dict(fitting, strict=False)
    return list(fitting)
