"""Networks as graphs compute what the networks compute: by torch.export always, by ONNX where its packages are."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from belvedere.checkpoints import graphs, store
from belvedere.compression.segpic import SegPIC
from belvedere.errors import InputError
from tests.generation.neti_models import tiny_text_model, tiny_unet, tiny_xl_unet
from tests.synthesis.test_nvist import small


def autoencoder() -> nn.Module:
    torch.manual_seed(0)
    kind = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return AutoencoderKL(block_out_channels=[8, 16], norm_num_groups=4, sample_size=16, **kind)


def segpic() -> nn.Module:
    torch.manual_seed(0)
    return SegPIC.from_variant("SegPIC/8")


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "nvist": small,
    "segpic": segpic,
    "autoencoder": autoencoder,
    "unet": tiny_unet,
    "unet of SDXL": lambda: tiny_xl_unet(16),
    "text encoder": tiny_text_model,
    "text encoder of SDXL": lambda: tiny_text_model(projection=True),
}
SLOW = ("segpic", "autoencoder", "unet", "unet of SDXL")
NAMES = ["dimr", "fitv2", *(pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NETWORKS)]


@pytest.fixture
def network(request: pytest.FixtureRequest, tiny_model: Path, tiny_fitv2: Path) -> nn.Module:
    folders = {"dimr": tiny_model, "fitv2": tiny_fitv2}
    if request.param in folders:
        found: nn.Module = store.load(folders[request.param], device="cpu").network
        return found
    return NETWORKS[request.param]()


def outputs(module: Callable[..., object], part: graphs.Part) -> list[torch.Tensor]:
    with torch.no_grad():
        found = module(*part.inputs.values())
    return [found] if isinstance(found, torch.Tensor) else list(found)  # type: ignore[call-overload]


@pytest.mark.slow
@pytest.mark.parametrize("network", NAMES, indirect=True)
def test_a_program_computes_the_same(network: nn.Module, tmp_path: Path) -> None:
    for name, part in graphs.parts(network).items():
        graphs.write_program(part, tmp_path / f"{name}.pt2")
        program = torch.export.load(tmp_path / f"{name}.pt2")
        assert not any("belvedere" in str(node.target) for node in program.graph.nodes)
        want, got = outputs(part.module, part), outputs(program.module(), part)
        assert len(want) == len(got) == len(part.outputs)
        for a, b in zip(want, got, strict=True):
            torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("network", NAMES, indirect=True)
def test_onnx_computes_the_same(network: nn.Module, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'belvedere[onnx]'")
    import onnxruntime

    for name, part in graphs.parts(network).items():
        graphs.write_onnx(part, tmp_path / f"{name}.onnx")
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
        got = session.run(list(part.outputs), {key: x.numpy() for key, x in part.inputs.items()})
        for a, b in zip(outputs(part.module, part), got, strict=True):
            torch.testing.assert_close(torch.from_numpy(b), a, atol=1e-4, rtol=1e-3)


def test_other_networks_are_refused() -> None:
    with pytest.raises(InputError, match="Linear is no network that can be exported"):
        graphs.parts(nn.Linear(2, 2))
