"""Cross-attention by layer: order, statelessness, against a stock U-Net whose maps are fed by hand. Golden: parity."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation.neti_attention import (
    LayerAttention,
    cross_attentions,
    install,
    layer_indexes,
    with_negative,
)
from tests.generation.neti_models import random, tiny_unet, tiny_xl_unet

LAYERS, TOKENS, CHANNELS = 7, 5, 16
SD1: dict[str, Any] = {
    "layers_per_block": 2,
    "block_out_channels": (8, 8, 8, 8),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SD2 = SD1 | {"attention_head_dim": (2, 4, 4, 8), "use_linear_projection": True}


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Return a sample, times and conditioning."""
    return random(batch, 4, 8, 8), torch.tensor([700, 13] * batch)[:batch], random(batch, LAYERS, 2, TOKENS, CHANNELS)


def stock(unet: UNet2DConditionModel, x: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
    """Run a U-Net with its own processors; its maps of keys and values are given contexts as they come to run."""
    order: list[str] = []

    def feed(name: str, which: int) -> Callable[..., tuple[Tensor]]:
        def hook(module: object, arguments: tuple[Tensor]) -> tuple[Tensor]:
            if name not in order:
                order.append(name)
            return (conditioning[:, order.index(name), which],)

        return hook

    hooks = [
        unet.get_submodule(f"{name}.to_{'kv'[which]}").register_forward_pre_hook(feed(name, which))
        for name in cross_attentions(unet)
        for which in (0, 1)
    ]
    out = unet(x, t, conditioning[:, 0, 0]).sample
    for hook in hooks:
        hook.remove()
    assert order == cross_attentions(unet)  # the order by name is the one of execution
    return out


@torch.no_grad()
def test_every_layer_gets_its_own_keys_and_values() -> None:
    want = stock(tiny_unet(), *inputs())
    unet = tiny_unet()
    assert install(unet) == LAYERS
    torch.testing.assert_close(unet(*inputs()).sample, want)
    x, t, conditioning = inputs()
    for layer in range(LAYERS):
        for which in (0, 1):
            changed = conditioning.clone()
            changed[:, layer, which, 0] += 1  # of all tokens alike, softmax would not see it in the keys
            assert not torch.allclose(unet(x, t, changed).sample, want, atol=1e-5)


@pytest.mark.parametrize("config", [SD1, SD2], ids=["SD 1.x", "SD 2.x"])
@torch.no_grad()
def test_the_published_layers(config: dict[str, Any]) -> None:
    unet = tiny_unet(**config)
    places = ["down_blocks.0.attentions.0", "down_blocks.0.attentions.1", "down_blocks.1.attentions.0"]
    places += ["down_blocks.1.attentions.1", "down_blocks.2.attentions.0", "down_blocks.2.attentions.1"]
    places += ["mid_block.attentions.0"] + [f"up_blocks.{i}.attentions.{j}" for i in (1, 2, 3) for j in (0, 1, 2)]
    want = {f"{place}.transformer_blocks.0.attn2": index for index, place in enumerate(places)}
    assert layer_indexes(unet) == want == layer_indexes(unet, 16)
    x, t, conditioning = random(1, 4, 8, 8), torch.tensor([5]), random(1, 16, 2, TOKENS, CHANNELS)
    by_hand = stock(unet, x, t, conditioning)
    install(unet, 16)
    torch.testing.assert_close(unet(x, t, conditioning).sample, by_hand)


def test_an_xl_network_has_a_layer_for_each_attention_or_for_each_transformer() -> None:
    unet = tiny_xl_unet(CHANNELS)
    names = cross_attentions(unet)
    assert list(layer_indexes(unet).values()) == list(range(12))
    shared = layer_indexes(unet, 4)
    assert list(shared) == names and list(shared.values()) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert install(unet, 4) == 4
    with pytest.raises(InputError, match="made for 16 layers, this U-Net has 12 cross-attentions in 4 transformers"):
        install(unet, 16)
    with pytest.raises(InputError, match="no cross-attention"):
        install(torch.nn.Linear(2, 2))


@torch.no_grad()
def test_a_plain_context_means_what_it_always_did() -> None:
    x, t, conditioning = inputs()
    context, mask = conditioning[:, 0, 0], torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    unet = tiny_unet()
    want = [unet(x, t, context).sample, unet(x, t, context, encoder_attention_mask=mask).sample]
    install(unet)
    torch.testing.assert_close(unet(x, t, context).sample, want[0])
    torch.testing.assert_close(unet(x, t, context, encoder_attention_mask=mask).sample, want[1])
    assert not torch.allclose(*want, atol=1e-4)


@torch.no_grad()
def test_both_guidance_halves_share_a_call() -> None:
    unet = tiny_unet()
    install(unet)
    (x, t, conditioning), negative = inputs(), random(1, TOKENS, CHANNELS, seed=1)
    joined = with_negative(negative, conditioning)
    assert joined.shape == (4, LAYERS, 2, TOKENS, CHANNELS)
    unguided, guided = unet(torch.cat((x, x)), torch.cat((t, t)), joined).sample.chunk(2)
    torch.testing.assert_close(unguided, unet(x, t, negative.expand(2, -1, -1)).sample)
    torch.testing.assert_close(guided, unet(x, t, conditioning).sample)


@torch.no_grad()
def test_nothing_is_left_of_a_run_that_broke_off() -> None:
    unet = tiny_unet()
    install(unet)
    want = unet(*inputs()).sample

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    hook = unet.mid_block.register_forward_pre_hook(stop)
    with pytest.raises(Stop):
        unet(*inputs())
    hook.remove()
    assert torch.equal(unet(*inputs()).sample, want)


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpointing in (False, True):
        unet = tiny_unet().train()
        install(unet)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        x, t, conditioning = inputs()
        conditioning.requires_grad_(True)
        unet(x, t, conditioning).sample.square().sum().backward()
        assert conditioning.grad is not None
        gradients.append(conditioning.grad)
    assert (gradients[0].flatten(3).abs().amax((0, 3)) > 0).all()  # of every layer's keys and values
    torch.testing.assert_close(*gradients)


@pytest.mark.slow
@torch.no_grad()
def test_it_compiles_whole() -> None:
    torch._dynamo.reset()
    unet = tiny_unet()
    install(unet)
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs()).sample, unet(*inputs()).sample)


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_network_is_prepared_as_the_one_inside() -> None:
    torch._dynamo.reset()
    unet, plain = tiny_unet(), tiny_unet()
    compiled = torch.compile(unet, backend="eager")
    assert cross_attentions(compiled) == cross_attentions(unet)
    assert install(compiled) == install(plain) == LAYERS == install(compiled, LAYERS)
    torch.testing.assert_close(compiled(*inputs()).sample, plain(*inputs()).sample)


def test_conditioning_of_another_network_is_refused() -> None:
    with pytest.raises(InputError, match="conditioning of 6 layers for a U-Net prepared for 7"):
        LayerAttention(0, LAYERS).contexts(random(1, 6, 2, TOKENS, CHANNELS))
