import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.generation.inception import (
    CLASSES,
    POOL,
    SPATIAL,
    InceptionV3,
    Mixed8,
    Mixed17,
    Mixed35,
    resize,
    to_input,
)
from tests.inception_helpers import published, random_inception


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    return random_inception()


def test_names_and_sizes_are_the_published_ones() -> None:
    """Inception-v3 of 1000 classes has 23,834,568 parameters without its auxiliary head; 8 classes more, 2049 each."""
    with torch.device("meta"):
        network = InceptionV3()
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_834_568 + 8 * 2049
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 94
    shapes = {name: tuple(tensor.shape) for name, tensor in published(network).items()}
    assert len(shapes) == 94 * 5 + 2
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_5b.branch5x5_2.conv.weight"] == (64, 48, 5, 5)
    assert shapes["Mixed_6b.branch7x7dbl_2.conv.weight"] == (128, 128, 7, 1)
    assert shapes["Mixed_6c.branch7x7_2.conv.weight"] == (160, 160, 1, 7)
    assert shapes["Mixed_7a.branch7x7x3_4.conv.weight"] == (192, 192, 3, 3)
    assert shapes["Mixed_7b.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert shapes["Mixed_7c.branch_pool.bn.running_var"] == (192,)
    assert shapes["fc.weight"] == (1008, 2048) and shapes["fc.bias"] == (1008,)


def test_one_look_gives_all_three_kinds_of_features(network: InceptionV3) -> None:
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> None:
        def hook(_module: nn.Module, _given: object, result: Tensor) -> None:
            seen[name] = result

        network.get_submodule(name).register_forward_hook(hook)

    for name in ("Mixed_6d.branch1x1", "Mixed_7c"):
        keep(name)
    with torch.no_grad():
        found = network(torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8))
    assert seen["Mixed_7c"].shape == (2, POOL, 8, 8) and found.pool.std() > 1e-3
    torch.testing.assert_close(found.pool, seen["Mixed_7c"].flatten(2).mean(2))
    torch.testing.assert_close(found.logits, found.pool @ network.fc.weight.T)  # without the bias
    assert found.logits.shape == (2, CLASSES)
    by_place = found.spatial.view(2, 17, 17, 7)
    assert found.spatial.shape == (2, SPATIAL) and found.spatial.std() > 1e-3
    torch.testing.assert_close(by_place[1, 3, 5], seen["Mixed_6d.branch1x1"][1, :7, 3, 5])


def _first_of_pooling(block: nn.Module, x: Tensor) -> Tensor:
    """Return what the pooling branch of a block gives its convolution."""
    given: list[Tensor] = []
    handle = block.get_submodule("branch_pool").register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with torch.no_grad():
        block(x)
    handle.remove()
    return given[0]


@pytest.mark.parametrize("block", [Mixed35(8, 4), Mixed17(8), Mixed8(8, maximum=False)])
def test_averages_do_not_count_the_padding(block: nn.Module) -> None:
    x = torch.ones(1, 768 if isinstance(block, Mixed17) else 8, 9, 9)
    torch.testing.assert_close(_first_of_pooling(block.eval(), x), x)


def test_only_the_last_block_takes_the_maximum(network: InceptionV3) -> None:
    x = torch.randn(1, 2048, 4, 4)
    torch.testing.assert_close(_first_of_pooling(network.Mixed_7c, x), F.max_pool2d(x, 3, 1, 1))
    x = torch.randn(1, 1280, 4, 4)
    assert not torch.allclose(_first_of_pooling(network.Mixed_7b, x), F.max_pool2d(x, 3, 1, 1))


def test_batch_norm_by_hand() -> None:
    """With running variance v, the factor of a unit is 1 / sqrt(v + 0.001)."""
    unit = random_inception().Conv2d_3b_1x1
    unit.bn.running_var.fill_(0.003)
    x = torch.rand(1, 64, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(unit(x), F.relu(unit.conv(x) / 0.004**0.5))


def test_larger_as_tensorflow_documents_it() -> None:
    """``tf.image.resize_bilinear`` of [[0, 1], [2, 3]] to 4 x 4, corners not aligned."""
    x = torch.tensor([[0.0, 1], [2, 3]])[None, None]
    expected = torch.tensor([[0, 0.5, 1, 1], [1, 1.5, 2, 2], [2, 2.5, 3, 3], [2, 2.5, 3, 3]])
    torch.testing.assert_close(resize(x, 4)[0, 0], expected)


def test_smaller_by_hand_of_an_oblong_picture() -> None:
    """Of 3 columns, new ones lie at 0 and 1.5; of 4 rows at 0 and 2: nothing is smoothed."""
    x = torch.arange(12.0).view(1, 1, 4, 3)
    torch.testing.assert_close(resize(x, 2)[0, 0], torch.tensor([[0, 1.5], [6, 7.5]]))


def test_a_picture_of_the_right_size_is_only_scaled() -> None:
    picture = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8)
    picture[0, :, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    found = to_input(picture)
    assert found[0, 0, 0, :2].tolist() == [-1, 127 / 128]
    torch.testing.assert_close(found, (picture.double().sub(128) / 128).float(), rtol=0, atol=0)
