"""Weights of the right names and shapes for Inception-v3, drawn at random: nobody's are on the machine."""

import torch

from belvedere.generation.inception import InceptionV3


def random_inception() -> InceptionV3:
    """Return the network with random weights that keep the scale of what they are given."""
    torch.manual_seed(0)
    network = InceptionV3().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


def published(network: InceptionV3) -> dict[str, torch.Tensor]:
    """Return its weights as the published file has them, without counters of training steps."""
    return {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}
