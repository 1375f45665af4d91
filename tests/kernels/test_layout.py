"""Weights of convolutions on a CPU: channels last, with the same values."""

import torch
from torch import nn

from belvedere.kernels.layout import place


def test_convolutions_go_channels_last_with_the_values_they_had() -> None:
    network = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(6, 5, 3), nn.Linear(8, 8))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.randn(2, 4, 12, 10)
    expected = network[:2](x)

    assert place(network, torch.device("cpu")) is network

    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not network[0].weight.is_contiguous()
    found = network[:2](x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
