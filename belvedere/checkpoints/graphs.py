"""Networks as graphs for other programs: ``torch.export`` (.pt2) and ONNX, part by part, for one picture of fixed size.

A part is what runs in one call: a denoiser, an encoder, a decoder. What happens between calls, samplers and entropy
coding, is not part of a graph.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from belvedere.compression.regions import places
from belvedere.compression.segpic import STRIDE, SegPIC
from belvedere.errors import InputError
from belvedere.generation.dimr import DiMR
from belvedere.generation.fitv2 import FiTv2
from belvedere.synthesis.nvist import NViST

EXTRA = "pip install 'belvedere[onnx]'"
TOKENS = 77
"""Of a prompt, where nothing says how many."""


class Part(NamedTuple):
    """One call of a network."""

    module: nn.Module
    inputs: dict[str, Tensor]
    """By name, random, of the shapes that the graph takes."""
    outputs: tuple[str, ...]


class _Call(nn.Module):
    """A function of a network, as a module whose weights are the network's."""

    def __init__(self, network: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.network, self.function = network, function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def parts(network: nn.Module, tokens: int = TOKENS) -> dict[str, Part]:
    """Return the parts of a network by name; ``tokens`` of the prompt that a denoiser of text-to-image is told.

    Raises ``InputError`` for a network that no graph can hold.
    """
    for kind, split in _SPLITS.items():
        if isinstance(network, kind):
            network = network.eval().requires_grad_(False)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return split(network, tokens) if kind is UNet2DConditionModel else split(network)
    raise InputError(f"{type(network).__name__} is no network that can be exported as a graph")


def _dimr(network: DiMR) -> dict[str, Part]:
    last = network.sizes[-1]
    x = torch.randn(1, network.config.channels, last.height * last.ratio, last.width * last.ratio)
    inputs = {"x": x.to(network.dtype), "log_snr": torch.tensor([1.0]), "y": torch.tensor([1])}

    def denoise(x: Tensor, log_snr: Tensor, y: Tensor) -> Tensor:
        return network(x, log_snr, y)[-1]

    return {"denoiser": Part(_Call(network, denoise), inputs, ("prediction",))}


def _fitv2(network: FiTv2) -> dict[str, Part]:
    config = network.config
    side = config.trained_side
    layout = network.layout([(side, side)], "none", "cpu")
    x = torch.randn(side**2, config.channels * config.patch**2, dtype=network.dtype)
    inputs = {"tokens": x, "t": torch.tensor([0.4]), "y": torch.tensor([1])}

    def denoise(tokens: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return network.run(tokens, network.modulate(t, y), layout)

    return {"denoiser": Part(_Call(network, denoise), inputs, ("prediction",))}


def _nvist(network: NViST) -> dict[str, Part]:
    image = torch.rand(1, 3, *network.config.image, dtype=network.dtype)
    conditions = torch.tensor([[1.3, 1.1]])

    def decode(latent: Tensor, conditions: Tensor) -> tuple[Tensor, ...]:
        return tuple(x for x in network.decode(latent, conditions) if x is not None)

    with torch.no_grad():
        latent = torch.randn_like(network.encode(image))
        volume = network.decode(latent, conditions)
    outputs = tuple(name for name, x in volume._asdict().items() if x is not None)
    encoder = Part(_Call(network, network.encode), {"image": image}, ("latent",))
    return {
        "encoder": encoder,
        "decoder": Part(_Call(network, decode), {"latent": latent, "conditions": conditions}, outputs),
    }


def _segpic(network: SegPIC) -> dict[str, Part]:
    """Analysis and synthesis around the entropy coder, of pictures of 2 x 2 tiles of the stride, without gains."""
    picture = torch.rand(1, 3, 2 * STRIDE, 2 * STRIDE, dtype=network.dtype)
    quarter, _ = places(picture, None, network.config.grid)

    def encode(picture: Tensor) -> tuple[Tensor, Tensor]:
        features = network.analysis1(picture)
        prototypes, _ = network.prototypes1(features, quarter, None, "prototypes1")
        return network.analysis2(network.encoder_rat(features, prototypes, quarter)), prototypes

    def decode(latent: Tensor, prototypes: Tensor) -> Tensor:
        return network.synthesise(latent, prototypes, quarter)

    with torch.no_grad():
        latent, prototypes = encode(picture)
    encoder = Part(_Call(network, encode), {"picture": picture}, ("latent", "prototypes"))
    decoder = Part(_Call(network, decode), {"latent": latent, "prototypes": prototypes}, ("picture",))
    return {"encoder": encoder, "decoder": decoder}


def _autoencoder(network: AutoencoderKL) -> dict[str, Part]:
    side = network.config.sample_size
    picture = torch.rand(1, network.config.in_channels, side, side, dtype=network.dtype) * 2 - 1

    def encode(picture: Tensor) -> Tensor:
        return network.encode(picture).latent_dist.parameters

    def decode(latent: Tensor) -> Tensor:
        return network.decode(latent).sample

    with torch.no_grad():
        latent = encode(picture).chunk(2, 1)[0].contiguous()
    encoder = Part(_Call(network, encode), {"picture": picture}, ("moments",))
    return {"encoder": encoder, "decoder": Part(_Call(network, decode), {"latent": latent}, ("picture",))}


def _text_encoder(network: CLIPTextModel | CLIPTextModelWithProjection) -> dict[str, Part]:
    """What Stable Diffusion (the last layer) and SDXL (the one before, and the pooled text) take of a prompt."""
    config = network.config
    tokens = torch.randint(0, config.vocab_size, (1, config.max_position_embeddings))
    tokens[0, -1] = config.vocab_size - 1  # the end of the text, which "pooled" is of

    def encode(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = network(tokens, output_hidden_states=True)
        pooled = found.text_embeds if isinstance(network, CLIPTextModelWithProjection) else found.pooler_output
        return found.last_hidden_state, found.hidden_states[-2], pooled

    return {"encoder": Part(_Call(network, encode), {"tokens": tokens}, ("last", "penultimate", "pooled"))}


def _unet(network: UNet2DConditionModel, tokens: int) -> dict[str, Part]:
    """The denoiser of Stable Diffusion; SDXL's takes the pooled text and six sizes too."""
    config = network.config
    side = config.sample_size
    inputs = {
        "latent": torch.randn(1, config.in_channels, side, side, dtype=network.dtype),
        "t": torch.tensor([500]),
        "text": torch.randn(1, tokens, config.cross_attention_dim, dtype=network.dtype),
    }
    if config.addition_embed_type == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs |= {"pooled": torch.randn(1, width, dtype=network.dtype), "sizes": torch.full((1, 6), 64.0)}

    def denoise(latent: Tensor, t: Tensor, text: Tensor, *added: Tensor) -> Tensor:
        told = dict(zip(("text_embeds", "time_ids"), added, strict=True)) if added else None
        return network(latent, t, text, added_cond_kwargs=told, return_dict=False)[0]

    return {"denoiser": Part(_Call(network, denoise), inputs, ("prediction",))}


_SPLITS: dict[type, Callable[..., dict[str, Part]]] = {
    DiMR: _dimr,
    FiTv2: _fitv2,
    NViST: _nvist,
    SegPIC: _segpic,
    AutoencoderKL: _autoencoder,
    CLIPTextModel: _text_encoder,
    CLIPTextModelWithProjection: _text_encoder,
    UNet2DConditionModel: _unet,
}


def _whole_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float | None) -> Tensor:
    """Attention (n, h, d) of a single sequence, which a part of one picture is."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, h, n, d): ONNX knows no other form
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[0].transpose(0, 1).contiguous()


def exported(part: Part) -> "torch.export.ExportedProgram":
    """Return a part as a program of PyTorch's own operators; it needs nothing of Belvedere."""
    with torch.no_grad():
        program = torch.export.export(part.module, tuple(part.inputs.values()), strict=False)
    own = torch.ops.belvedere.packed_attention.default
    if any(node.target == own for node in program.graph.nodes):
        program = program.run_decompositions({own: _whole_attention})
    return program


def write_program(part: Part, path: Path) -> None:
    """Write a part as ``torch.export.load`` reads it."""
    torch.export.save(exported(part), path)


def write_onnx(part: Part, path: Path) -> None:
    """Write a part as ONNX, its weights inside; raises ``InputError`` when a package for it is missing."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"ONNX needs the package {error.name}: {EXTRA}") from error
    program = torch.onnx.export(
        exported(part), input_names=list(part.inputs), output_names=list(part.outputs), dynamo=True, verbose=False
    )
    assert program is not None
    program.save(str(path), external_data=False)
