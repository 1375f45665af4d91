import json
import math
from pathlib import Path

import pytest
import torch

from belvedere.apps.evaluate import (
    REAL_SEED,
    evaluate_generation,
    evaluate_images,
    frechet_distance,
    gaussian_distance,
    load_classifier,
)
from belvedere.checkpoints import store
from belvedere.data.toybox import KINDS, Toybox
from belvedere.data.toybox.classifier import ToyClassifier
from belvedere.errors import InputError
from tests.conftest import CLASSES


@pytest.fixture(scope="module")
def classifier() -> ToyClassifier:
    torch.manual_seed(0)
    return ToyClassifier(list(CLASSES), width=16).eval()


def test_distance_of_diagonal_gaussians_by_hand() -> None:
    """Means 3 and 4 apart; standard deviations 1, 2 against 3, 5: 9 + 16 + (1 - 3)^2 + (2 - 5)^2 = 38."""
    a, b = torch.diag(torch.tensor([1.0, 4])).double(), torch.diag(torch.tensor([9.0, 25])).double()
    mean = torch.tensor([3.0, 4]).double()
    assert gaussian_distance(torch.zeros(2).double(), a, mean, b) == pytest.approx(38, abs=1e-9)


def test_distance_does_not_change_when_the_space_is_turned() -> None:
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double())
    a, b = torch.diag(torch.arange(1.0, 6)).double(), torch.diag(torch.tensor([2.0, 0, 3, 1, 9])).double()
    mean, zero = torch.arange(5.0).double(), torch.zeros(5).double()
    plain = gaussian_distance(zero, a, mean, b)
    turned = gaussian_distance(zero, turn @ a @ turn.T, turn @ mean, turn @ b @ turn.T)
    assert turned == pytest.approx(plain, rel=1e-9)
    assert gaussian_distance(mean, b, zero, a) == pytest.approx(plain, rel=1e-9)


def test_distance_of_samples() -> None:
    numbers = torch.randn(2, 20_000, 3, generator=torch.Generator().manual_seed(1))
    a, b = numbers[0], 2 * numbers[1] + 1
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(6, rel=0.03)


def test_fewer_samples_than_features() -> None:
    assert math.isfinite(frechet_distance(torch.randn(10, 64), torch.randn(12, 64)))


def test_renders_are_as_far_as_renders_and_noise_is_farther(classifier: ToyClassifier) -> None:
    toys = Toybox(32, seed=99, kinds=CLASSES).batch(range(80))
    real = evaluate_images(toys["image"], toys["label"], classifier)
    noise = evaluate_images(torch.randn(80, 3, 32, 32).clamp(-1, 1), toys["label"], classifier)
    assert real.ratio == pytest.approx(1, abs=0.5) and noise.ratio > 2.5
    assert real.frechet_real == noise.frechet_real == pytest.approx(real.frechet / real.ratio)


def test_shares_are_counted_by_kind() -> None:
    """The judge names every picture boat."""
    judge = ToyClassifier(list(CLASSES), width=16)
    with torch.no_grad():
        judge.head.weight.zero_()
        judge.head.bias.copy_(torch.tensor([0.0, 1, 0, 0, 0]))
    toys = Toybox(16, kinds=CLASSES, samples=1).batch(range(16))
    quality = evaluate_images(toys["image"], toys["label"], judge)
    assert quality.recognised == 0.25
    assert quality.recognised_by_kind == {"car": 0, "boat": 1, "plane": 0, "rocket": 0}
    assert quality.named == {"car": 0, "boat": 16, "plane": 0, "rocket": 0, "reject": 0}


def test_a_model_is_measured_from_its_name(tiny_model: Path, classifier: ToyClassifier) -> None:
    done = []
    result = evaluate_generation(
        str(tiny_model), count=8, steps=2, classifier=classifier, progress=lambda d, n: done.append((d, n))
    )
    assert json.loads(json.dumps(result)) == result
    assert result["count"] == 8 and result["steps"] == 2 and result["guidance"] == 1.5
    assert sum(result["named"].values()) == 8 and set(result["recognised_by_kind"]) == set(CLASSES)
    assert done[-1] == (8, 8)
    again = evaluate_generation(str(tiny_model), count=8, steps=2, classifier=classifier)
    assert again == result


def test_a_model_has_its_own_steps_and_a_solver_is_told(tiny_fitv2: Path, classifier: ToyClassifier) -> None:
    asked = {"count": 8, "classifier": classifier}
    own = evaluate_generation(str(tiny_fitv2), **asked)
    heun = evaluate_generation(str(tiny_fitv2), **asked, solver="heun", guidance_channels=2)
    assert own["steps"] == heun["steps"] == 3 and "solver" not in own
    assert heun["solver"] == "heun" and heun["guidance_channels"] == 2 and heun["frechet"] != own["frechet"]


@pytest.mark.parametrize("model", ["dimr-toybox", "fitv2-toybox"])
def test_figures_of_embedded_models_are_of_their_own_steps(model: str) -> None:
    folder = store.EMBEDDED / model
    index = json.loads((folder / "model_index.json").read_text())
    assert store.card(folder)["quality"]["steps"] == index["default_steps"]


def test_a_size_and_an_extrapolation_are_measured(tiny_fitv2: Path, classifier: ToyClassifier) -> None:
    asked = {"count": 8, "steps": 2, "classifier": classifier}
    own, wide, turned, large = (
        evaluate_generation(str(tiny_fitv2), size=size, extrapolation=name, **asked)
        for size, name in (("", None), ("32x16", None), ("32x16", "vision-ntk"), ("32x32", None))
    )
    assert json.loads(json.dumps(turned)) == turned
    assert [(found["size"], found["extrapolation"]) for found in (own, wide, turned)] == [
        ("16x16", "none"),
        ("32x16", "none"),
        ("32x16", "vision-ntk"),
    ]
    assert len({found["frechet"] for found in (own, wide, turned, large)}) == 4
    assert own["frechet_real"] != large["frechet_real"]  # the renders have the size of the pictures


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("16x16,32x16", "cannot evaluate the sizes 16x16,32x16 together: give one"),
        ("17x16", "size 17x16: this model makes multiples of 4"),
        ("4x16", "size must be from 8 to 1024, not 4"),
        ("16x1028", "size must be from 8 to 1024, not 1028"),
    ],
)
def test_a_size_that_cannot_be_measured_is_refused_before_any_work(
    tiny_fitv2: Path, classifier: ToyClassifier, size: str, message: str
) -> None:
    """The renders that pictures are compared with have 8 to 1024 pixels a side."""
    seen: list[float] = []
    with pytest.raises(InputError, match=message):
        evaluate_generation(
            str(tiny_fitv2),
            count=8,
            steps=1,
            size=size,
            classifier=classifier,
            progress=lambda done, total: seen.append(done),
        )
    assert seen == []


def test_bad_input_is_named(tiny_model: Path, classifier: ToyClassifier) -> None:
    with pytest.raises(InputError, match="10 pictures: give a multiple of 4"):
        evaluate_generation(str(tiny_model), count=10, classifier=classifier)
    with pytest.raises(InputError, match="no class 'house'"):
        evaluate_generation(str(tiny_model), count=24, classifier=ToyClassifier(list(KINDS)))
    toys = Toybox(16, kinds=CLASSES, samples=1).batch([0, 4, 1, 5, 2, 6, 3, 7])
    with pytest.raises(InputError, match="balanced"):
        evaluate_images(toys["image"], torch.zeros(8, dtype=torch.long), classifier)


def test_classifier_is_loaded_from_a_folder(classifier: ToyClassifier, tmp_path: Path) -> None:
    classifier.save_pretrained(tmp_path)
    again = load_classifier(tmp_path)
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(again(x), classifier(x))
    assert not again.training


def test_no_default_training_seed_is_measured_on() -> None:
    assert Toybox().seed != REAL_SEED
