"""Codecs in folders: what was saved is loaded, and what could not be loaded is not saved."""

from pathlib import Path

import pytest
import torch

from belvedere.checkpoints.codecs import load_codec, save_codec
from belvedere.checkpoints.official import load_official
from belvedere.errors import InputError
from tests.compression.test_segpic import small
from tests.official_segpic import golden_weights


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    model = small()
    save_codec(model, "float32", tmp_path / "codec", {})
    state = load_codec(tmp_path / "codec", "cpu").model.state_dict()
    assert all(torch.equal(x, state[key]) for key, x in model.state_dict().items())


def test_weights_that_cannot_be_compressed_with_are_not_saved(tmp_path: Path) -> None:
    for name, change, message in (
        ("hyper_means.0.weight", 1e6, "exact sums take up to"),
        ("bottleneck.quantiles", -3000.0, "z of a model has medians up to 3000"),
        ("bottleneck.quantiles", -1e9, "z of a model has medians up to 1e"),
    ):
        model = small()
        with torch.no_grad():
            model.get_parameter(name).add_(change)
        with pytest.raises(InputError, match=message):
            save_codec(model, "float32", tmp_path / "codec", {})
        assert list(tmp_path.iterdir()) == []


def test_an_official_file_whose_median_is_far_is_not_imported(tmp_path: Path) -> None:
    weights = golden_weights(8, "segpic-a")
    weights["entropy_bottleneck_b.quantiles"] = weights["entropy_bottleneck_b.quantiles"] - 5e8
    with pytest.raises(InputError, match="prototypes1 of a model has medians"):
        save_codec(load_official("segpic", weights), "float32", tmp_path / "codec", {})
