"""MVImgNet for training: items are functions of the seed and the index, their cameras those of the pictures."""

from pathlib import Path

import pytest
import torch

from belvedere.data.mvimgnet import MVImgNet
from belvedere.data.mvimgnet_views import MVImgNetViews
from belvedere.errors import InputError
from tests.data.test_mvimgnet import SIZE, data_dir, written

__all__ = ["data_dir", "written"]  # fixtures


def test_items_are_views_of_one_scene_with_their_cameras(data_dir: Path) -> None:
    data, scenes = MVImgNetViews(str(data_dir), size=SIZE, views=3, seed=5), MVImgNet(data_dir, "train", SIZE)
    batch = data.batch([2, 6, 2])
    assert batch["image"].shape == (3, 3, *SIZE) and batch["views"].shape == (3, 3, 3, *SIZE)
    assert all(torch.equal(rows[0], rows[2]) for rows in batch.values())
    assert batch["label"].tolist() == [1, 1, 1] and len(data) == 4000
    assert not torch.equal(batch["poses"][0], batch["poses"][1])  # 6 is the scene of 2, drawn again
    seen = scenes.sample(2, [0, 1, 2])
    pictures = torch.cat((batch["image"][:1, None], batch["views"][:1]), 1)[0]
    for picture, pose, lens in zip(pictures, batch["poses"][0], batch["intrinsics"][0], strict=True):
        (view,) = [k for k in range(3) if torch.equal(picture, seen["image"][k])]
        camera = seen["cameras"][view]
        assert torch.equal(pose, camera.pose.float())
        assert lens.tolist() == pytest.approx([*camera.focal, *camera.principal])


def test_near_and_far_are_those_of_the_test_split(data_dir: Path) -> None:
    assert MVImgNetViews(str(data_dir), size=SIZE).near_far == MVImgNet(data_dir, "test", SIZE).near_far


def test_other_draws_are_others(data_dir: Path) -> None:
    poses = [MVImgNetViews(str(data_dir), size=SIZE, seed=seed).batch(range(8))["poses"] for seed in (0, 0, 1)]
    assert torch.equal(poses[0], poses[1]) and not torch.equal(poses[0], poses[2])


def test_pre_training_draws_the_same_inputs_and_nothing_beside_them(data_dir: Path) -> None:
    alone, beside = (MVImgNetViews(str(data_dir), size=SIZE, views=views).batch(range(24)) for views in (0, 1))
    assert torch.equal(alone["image"], beside["image"]) and alone["views"].shape == (24, 0, 3, *SIZE)
    assert torch.equal(alone["poses"][:, 0], beside["poses"][:, 0]) and alone["poses"].shape[1] == 1


def test_the_cache_may_be_elsewhere(data_dir: Path, tmp_path: Path) -> None:
    data = MVImgNetViews(str(data_dir), size=SIZE, cache=str(tmp_path / "cache"))
    assert data.near_far and not list(data_dir.glob("*.safetensors"))
    assert len(list((tmp_path / "cache").glob("belvedere-*.safetensors"))) == 2  # of both splits


def test_what_is_refused(data_dir: Path) -> None:
    for options, words in (({"views": -1}, "views -1"), ({"draws": True}, "draws True"), ({"split": "dev"}, "split")):
        with pytest.raises(InputError, match=words):
            MVImgNetViews(str(data_dir), size=SIZE, **options)
    with pytest.raises(InputError, match="no folder"):
        MVImgNetViews(str(data_dir / "nothing"))
    with pytest.raises(IndexError):
        MVImgNetViews(str(data_dir), size=SIZE)[4000]
