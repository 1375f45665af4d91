from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from belvedere.checkpoints.inception import FILE, load_inception
from belvedere.errors import InputError
from tests.inception_helpers import published, random_inception


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return published(random_inception())


@pytest.mark.slow
def test_published_file(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Files of newer versions of PyTorch hold counters of training steps."""
    torch.save(weights | {"Mixed_7c.branch_pool.bn.num_batches_tracked": torch.tensor(7)}, tmp_path / FILE)
    network = load_inception(tmp_path / FILE)
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    for name, tensor in published(network).items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)


def test_safetensors_in_half_precision(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file({name: tensor.half() for name, tensor in weights.items()}, tmp_path / "w.safetensors")
    network = load_inception(tmp_path / "w.safetensors")
    assert network.fc.weight.dtype == torch.float32
    torch.testing.assert_close(network.fc.weight.data, weights["fc.weight"], rtol=1e-3, atol=1e-4)


def test_what_is_missing_says_what_to_get(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^Inception features need .*{FILE} from https://github.com/.*--inception"):
        load_inception(None)
    with pytest.raises(InputError, match=r"^no file .*nowhere.pth: .*nothing is downloaded"):
        load_inception(tmp_path / "nowhere.pth")


def test_other_tensors_are_named(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Such as the head of 1000 classes of the later release, one too many, and one of integers."""
    path = tmp_path / "w.safetensors"
    save_file(weights | {"fc.weight": torch.zeros(1000, 2048), "AuxLogits.fc.bias": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"2 differences: fc.weight is \(1000, 2048\), not \(1008, 2048\); unexpected"):
        load_inception(path)
    save_file(weights | {"fc.bias": torch.zeros(1008, dtype=torch.int64)}, path)
    with pytest.raises(InputError, match=r"fc.bias is of torch.int64, not torch.float32\); get pt_inception"):
        load_inception(path)
    save_file(weights | {"fc.bias": torch.full((1008,), torch.nan)}, path)
    with pytest.raises(InputError, match=r"fc\.bias' holds NaN"):
        load_inception(path)


def test_a_hostile_pickle_does_not_run(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "harm",)

    torch.save({"fc.weight": Harm()}, tmp_path / FILE)
    with pytest.raises(InputError, match=FILE):
        load_inception(tmp_path / FILE)
    assert not (tmp_path / "harm").exists()
