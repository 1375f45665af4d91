"""The weights of Inception-v3 that FID is defined by: a file of the user's, checked against the network."""

from pathlib import Path

import torch

from belvedere.checkpoints.official import check_fit
from belvedere.checkpoints.tensors import read_state_dict
from belvedere.errors import InputError
from belvedere.generation.inception import InceptionV3

FILE = "pt_inception-2015-12-05-6726825d.pth"
SOURCE = "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"
"""Where TensorFlow's weights of 2015-12-05 are republished for PyTorch."""
_COUNTERS = ".num_batches_tracked"


def load_inception(path: Path | None) -> InceptionV3:
    """Return the network with the weights in a file (.pth, read in a process of its own, or .safetensors), on the CPU.

    Nothing is downloaded: without a file, and for one with other tensors, ``InputError`` says which one it must be.
    """
    if path is None or not path.is_file():
        lacking = "" if path is None else f"no file {path}: "
        raise InputError(
            f"{lacking}Inception features need the weights of FID, {FILE} from {SOURCE}; get that file yourself and "
            "name it with --inception (nothing is downloaded), or use --features classifier"
        )
    weights = read_state_dict(path)
    with torch.device("meta"):
        network = InceptionV3()
    # Counters of training steps, which do nothing here: files of older versions of PyTorch have none.
    zero = torch.zeros((), dtype=torch.int64, device="cpu")
    counters = {name: zero.clone() for name in network.state_dict() if name.endswith(_COUNTERS)}
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith(_COUNTERS)} | counters
    try:
        check_fit(network, weights)
    except InputError as error:
        raise InputError(
            f"{path.name} is not Inception-v3 as FID uses it ({error}); get {FILE} from {SOURCE}"
        ) from error
    floats = {name: tensor.float() for name, tensor in weights.items() if tensor.is_floating_point()}
    network.load_state_dict(counters | floats, assign=True)
    return network.eval().requires_grad_(False)
