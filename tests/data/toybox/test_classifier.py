from pathlib import Path

import pytest
import torch

from belvedere.data.toybox import KINDS, Toybox
from belvedere.data.toybox.classifier import DAMAGED, ToyClassifier, loss, parameter_groups
from belvedere.errors import InputError
from belvedere.seeds import BatchRng


@pytest.fixture(scope="module")
def classifier() -> ToyClassifier:
    torch.manual_seed(0)
    return ToyClassifier(list(KINDS))


def test_it_is_small_and_has_a_class_more_than_kinds(classifier: ToyClassifier) -> None:
    assert sum(p.numel() for p in classifier.parameters()) <= 500_000
    assert classifier.reject == 12 and classifier(torch.zeros(2, 3, 64, 64)).shape == (2, 13)


@pytest.mark.parametrize("shape", [(64, 64), (32, 32), (96, 128)])
def test_features_of_any_size(classifier: ToyClassifier, shape: tuple[int, int]) -> None:
    x = torch.rand(3, 3, *shape) * 2 - 1
    features = classifier.features(x)
    assert features.shape == (3, 128)
    torch.testing.assert_close(classifier.classify(features), classifier(x))
    torch.testing.assert_close(classifier.features(x[1:2])[0], features[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tall", [False, True])
def test_of_an_oblong_picture_it_looks_at_the_square_in_the_middle(classifier: ToyClassifier, tall: bool) -> None:
    x = torch.rand(2, 3, 40, 73, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shown, middle, left = (y.mT if tall else y for y in (x, x[..., 16:56], x[..., :40]))
    assert torch.equal(classifier.features(shown), classifier.features(middle))
    assert not torch.allclose(classifier.features(shown), classifier.features(left))


@pytest.mark.parametrize("sizes", [{"width": 12}, {"width": 0}, {"width": -8}, {"size": 0}])
def test_other_widths_and_sizes_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="multiple of 8"):
        ToyClassifier(KINDS, **sizes)


def test_saved_and_loaded_again(classifier: ToyClassifier, tmp_path: Path) -> None:
    classifier.save_pretrained(tmp_path)
    again = ToyClassifier.from_pretrained(tmp_path)
    assert tuple(again.config["classes"]) == KINDS
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(again(x), classifier(x))


def test_weight_decay_spares_norms_and_biases(classifier: ToyClassifier) -> None:
    decayed, spared = parameter_groups(classifier, 0.05)
    assert decayed["weight_decay"] == 0.05 and spared["weight_decay"] == 0
    assert len(decayed["params"]) == 7 and len(spared["params"]) == 13


def test_loss_counts_damaged_pictures_as_rejects(classifier: ToyClassifier) -> None:
    """A classifier that always says reject is right exactly on the damaged share."""
    constant = ToyClassifier(list(KINDS))
    with torch.no_grad():
        constant.head.weight.zero_()
        constant.head.bias.copy_(torch.arange(13.0))
    batch = Toybox(16, samples=1).batch(range(100))
    _, figures = loss(constant, batch, BatchRng(0, 0, range(100)))
    assert figures["accuracy"] == pytest.approx(DAMAGED, abs=0.1)


def test_loss_is_a_function_of_seed_step_and_sample(classifier: ToyClassifier) -> None:
    batch = Toybox(64, samples=1).batch(range(8))
    value, figures = loss(classifier, batch, BatchRng(0, 5, range(8)))
    assert value.item() == figures["loss"] == loss(classifier, batch, BatchRng(0, 5, range(8)))[1]["loss"]
    assert figures["loss"] != loss(classifier, batch, BatchRng(0, 6, range(8)))[1]["loss"]


def test_a_few_steps_fit_a_batch() -> None:
    torch.manual_seed(0)
    model = ToyClassifier(list(KINDS), width=16, size=32)
    batch = Toybox(32, samples=1).batch(range(12))
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=3e-3)
    for _ in range(40):
        value, _ = loss(model, batch, BatchRng(0, 0, range(12)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert loss(model, batch, BatchRng(0, 0, range(12)))[1]["accuracy"] > 0.9
