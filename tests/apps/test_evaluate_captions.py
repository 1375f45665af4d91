import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from belvedere.apps.caption_recogniser import Discriminant, Recogniser, color_features, ground_features, recogniser_of
from belvedere.apps.evaluate import load_classifier
from belvedere.apps.evaluate_captions import REAL_SEED, Asked, asked_for, evaluate_captions, judge
from belvedere.checkpoints import store
from belvedere.data.toybox import KINDS
from belvedere.data.toybox.captions import CaptionedToybox
from belvedere.data.toybox.classifier import ToyClassifier
from belvedere.data.toybox.damage import damage
from belvedere.errors import InputError
from belvedere.seeds import BatchRng
from tests.apps.conftest import Done, assert_refused, fill_cards, fill_results
from tests.apps.diffusion_helpers import AUTOENCODER, DIFFUSION, train_config

Shown = tuple[torch.Tensor, list[Asked]]


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusion")
    autoencoder = train_config(AUTOENCODER, folder / "autoencoder")
    return train_config(DIFFUSION | {"vae": str(autoencoder)}, folder / "run")


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return recogniser_of(KINDS)


@pytest.fixture(scope="module")
def classifier() -> ToyClassifier:
    return load_classifier()


@pytest.fixture(scope="module")
def shown() -> Shown:
    toys = CaptionedToybox(64, seed=REAL_SEED)
    looks = [(i, toys.look(i)) for i in range(120)]
    return toys.batch(range(120))["image"], [Asked(KINDS[i % 12], look.color, look.ground) for i, look in looks]


def test_a_discriminant_ignores_what_all_classes_vary_in() -> None:
    """Two classes 1 apart in one direction, 0.1 wide there and 10 wide in the other."""
    noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 3.0])
    labels = torch.arange(2000) % 2
    features = noise + labels[:, None] * torch.tensor([1.0, 0.0])
    found = Discriminant.fitted(features[:1000], labels[:1000])(features[1000:])
    assert (found == labels[1000:]).float().mean() > 0.97


def test_features_are_shares_of_colours() -> None:
    half = torch.full((1, 3, 64, 64), -1.0)
    half[:, 0, :, :32] = 1  # red, beside black
    shares = color_features(half).square()
    assert shares.sum().item() == pytest.approx(1) and sorted(shares[0].tolist())[-2:] == pytest.approx([0.5, 0.5])
    small = half[:, :, ::2, ::2]  # is looked at in the same size
    assert torch.allclose(ground_features(small), ground_features(half), atol=0.1)
    assert torch.allclose(color_features(small).square(), shares, atol=0.05)


@pytest.mark.slow
def test_renders_are_recognised(recogniser: Recogniser, classifier: ToyClassifier, shown: Shown) -> None:
    found = judge(*shown, classifier, recogniser)
    assert found.count == 120
    assert found.kind >= 0.95 and found.color >= 0.98 and found.ground >= 0.98 and found.all_three >= 0.93
    assert set(found.kind_by_kind) == set(KINDS) and json.dumps(asdict(found))


def test_what_was_not_asked_for_is_not_followed(
    recogniser: Recogniser, classifier: ToyClassifier, shown: Shown
) -> None:
    images, asked = shown
    other = [*asked[1:], asked[0]]  # the next kind, and mostly another colour and ground
    found = judge(images, other, classifier, recogniser)
    assert found.kind == 0 and found.color < 0.3 and found.ground < 0.3 and found.all_three == 0


def test_damaged_pictures_show_no_toy(recogniser: Recogniser, classifier: ToyClassifier, shown: Shown) -> None:
    images, asked = shown
    assert judge(damage(images, BatchRng(0, 0, range(120))), asked, classifier, recogniser).kind < 0.1


def test_captions_asked_for() -> None:
    asked = asked_for(48, 5, KINDS)
    assert [one.kind for one in asked] == list(KINDS) * 4 and asked[:12] == asked_for(12, 5, KINDS)
    assert asked != asked_for(48, 6, KINDS) and len(set(asked)) > 40
    assert Asked("car", "orange", "water").caption == "a photo of an orange car on blue water"


def test_an_untrained_model_follows_nothing(diffusion: Path, tmp_path: Path, command: Callable[..., Done]) -> None:
    out = tmp_path / "new" / "captions.json"
    done = command("evaluate", "captions", "--model", str(diffusion), "-n", "12", "-o", str(out), "--json")
    found = json.loads(done.out)
    assert done.code == 0 and json.loads(out.read_text()) == found
    assert found["count"] == 12 and found["all_three"] < 0.2 and found["weights"] == store.digest(diffusion)
    assert (found["steps"], found["guidance"]) == (2, 2.0)
    assert found["real"]["count"] == 12
    assert evaluate_captions(str(diffusion), count=12) == found


def test_figures_are_told_though_the_card_cannot_be_written(
    diffusion: Path, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_cards(monkeypatch)
    done = command("evaluate", "captions", "--model", diffusion, "-n", 12, "--card", "--json")
    assert done.code == 2 and json.loads(done.out)["count"] == 12 and "No space left on device" in done.error


def test_figures_are_told_though_the_file_cannot_be_written(
    diffusion: Path, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fill_results(monkeypatch)
    out = tmp_path / "captions.json"
    done = command("evaluate", "captions", "--model", diffusion, "-n", 12, "-o", out, "--json")
    assert done.code == 2 and json.loads(done.out)["count"] == 12
    assert f"cannot write {out}: No space left on device" in done.error and not out.exists()


def test_a_folder_is_no_file_for_results(command: Callable[..., Done], tmp_path: Path) -> None:
    assert_refused(command("evaluate", "captions", "--model", "nowhere", "-o", tmp_path), "is a folder: name a file in")


def test_bad_counts_and_models(diffusion: Path, tiny_model: Path) -> None:
    for count in (0, 13, 492):
        with pytest.raises(InputError, match="a multiple of 12, at most 480"):
            evaluate_captions(str(diffusion), count=count)
    with pytest.raises(InputError, match="makes pictures of classes"):
        evaluate_captions(str(tiny_model), count=12)
