"""The layers of learned transforms, against formulas worked out another way."""

import pytest
import torch

from belvedere.compression.layers import GDN, Affine, AttentionModule, Down, Up, WindowAttention, lower_bound


def test_lower_bound_lets_gradients_through_that_raise() -> None:
    x = torch.tensor([-1.0, -1.0, 2.0, 2.0], requires_grad=True)
    bounded = lower_bound(x, 0.5)
    (gradient,) = torch.autograd.grad(bounded, x, torch.tensor([1.0, -1.0, 1.0, -1.0]))
    assert bounded.tolist() == [0.5, 0.5, 2, 2] and gradient.tolist() == [0, -1, 1, -1]


def test_gdn_by_hand() -> None:
    # One channel at the start: beta 1, gamma 0.1. 2 / sqrt(1 + 0.4) = 1.6903; the inverse multiplies: 2.3664.
    x = torch.full((1, 1, 1, 1), 2.0)
    assert GDN(1)(x).item() == pytest.approx(1.69031, abs=1e-5)
    assert GDN(1, inverse=True)(x).item() == pytest.approx(2.36643, abs=1e-5)


def test_gdn_parameters_stay_positive() -> None:
    norm = GDN(3)
    with torch.no_grad():
        norm.beta.fill_(-1)
        norm.gamma.fill_(-1)
    x = torch.randn(1, 3, 2, 2)
    out = norm(x)  # beta 1e-6, gamma 0
    assert torch.allclose(out, x * 1000, rtol=1e-3)
    out.square().sum().backward()
    assert norm.beta.grad is not None and (norm.beta.grad < 0).all()  # a step raises beta again


def test_affine_is_scale_then_shift() -> None:
    layer = Affine(2)
    with torch.no_grad():
        layer.out.weight.zero_()
        layer.out.bias.copy_(torch.tensor([1.0, 2.0, 10.0, 20.0]))
    assert layer(torch.ones(1, 2, 1, 1)).flatten().tolist() == [12, 23]


def test_resolutions() -> None:
    assert Down(3, 4)(torch.zeros(1, 3, 6, 10)).shape == (1, 4, 3, 5)
    assert Up(4, 3)(torch.zeros(1, 4, 3, 5)).shape == (1, 3, 6, 10)


def naive(layer: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Pixel by pixel: q sees k in one window of the shifted map, unless only the shift brought them together."""
    _, c, h, w = x.shape
    side, shift = layer.window, layer.window // 2
    tokens = x[0].flatten(1).T  # (n, c)
    q, k, v = layer.qkv(tokens).unflatten(-1, (3, layer.heads, -1)).unbind(1)  # (n, heads, d)
    places = [(y, z, (y - shift) % h, (z - shift) % w) for y in range(h) for z in range(w)]
    out = torch.zeros_like(v)
    for i, (y, z, a, b) in enumerate(places):
        seen, bias = [], []
        for j, (y2, z2, a2, b2) in enumerate(places):
            together = a // side == a2 // side and b // side == b2 // side
            if together and (y - y2, z - z2) == (a - a2, b - b2):
                seen.append(j)
                bias.append((a - a2 + side - 1) * (2 * side - 1) + b - b2 + side - 1)
        logits = torch.einsum("hd,nhd->nh", q[i], k[seen]) * (c // layer.heads) ** -0.5 + layer.position[bias]
        out[i] = (logits.softmax(0)[..., None] * v[seen]).sum(0)
    return x + layer.out(out.flatten(1)).T.view_as(x)


@pytest.mark.parametrize(
    ("window", "size"), [(4, (4, 4)), (4, (4, 12)), (4, (8, 8)), (2, (6, 4)), (3, (6, 6)), (1, (2, 3))]
)
def test_window_attention_pixel_by_pixel(window: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = WindowAttention(8, 2, window)
    torch.nn.init.normal_(layer.position)
    x = torch.randn(1, 8, *size)
    assert torch.allclose(layer(x), naive(layer, x), atol=1e-5)


def test_attention_module_of_a_batch_is_one_by_one_and_trains() -> None:
    torch.manual_seed(0)
    module = AttentionModule(8, 2, 4)
    x = torch.randn(3, 8, 8, 8)
    together = module(x)
    assert torch.allclose(together, torch.cat([module(one[None]) for one in x]), atol=1e-5)
    together.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
