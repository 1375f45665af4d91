"""Measuring views: figures of views that are known, both protocols, kinds, and what is written down."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from belvedere.apps.evaluate_views import (
    card_facts,
    depth_rank,
    evaluate_views,
    load_lpips,
    measure_case,
    render_case,
    save,
    sheet_row,
    summary,
    table,
)
from belvedere.apps.view import turned
from belvedere.apps.view_cases import Case, CaseSet
from belvedere.errors import InputError
from belvedere.synthesis.cameras import Camera, conditions
from belvedere.synthesis.perceptual import _shapes as lpips_shapes
from belvedere.synthesis.render import Rendered, render_view
from tests.apps.conftest import Done, assert_refused, fill_cards, fill_results
from tests.apps.test_view_cases import write_capture
from tests.apps.view_helpers import SIZE, ball, network, save_model

Command = Callable[..., Done]
ANGLES = (20.0, 0.0, -10.0)


def cameras() -> tuple[Camera, ...]:
    return tuple(turned(ball().camera, angle) for angle in ANGLES)


def look(camera: Camera) -> Rendered:
    return render_view(ball((0.1, 0.0, 0.0)).field, camera, near=1, far=3, samples=64)


def case(kind: str = "ball", scene: str = "one", shade: float = 0.0) -> Case:
    """A ball seen three times, the second view being the network's; all pictures are brighter by ``shade``."""
    views = [look(camera) for camera in cameras()]
    pictures = torch.stack([view.colour.permute(2, 0, 1) * 0.5 + shade for view in views])
    distance = torch.stack([torch.where(v.opacity > 0.5, v.depth / v.opacity, math.inf) for v in views])
    return Case(scene, kind, pictures, cameras(), 1, (0, 2), torch.full((3, *SIZE), 0.25), distance)


def seen(one: Case) -> list[Rendered]:
    """What a network would have to see to be off by 0.1 at every pixel."""
    return [look(c)._replace(colour=p.permute(1, 2, 0) + 0.1) for c, p in zip(one.cameras, one.pictures, strict=True)]


def test_a_case_is_rendered_from_the_networks_one_picture() -> None:
    model, one = network(), case()
    views = render_case(model, one)
    with torch.no_grad():
        field = model(one.pictures[1:2], conditions([one.cameras[1]]))
    expected = [render_view(field, camera, near=1, far=3, samples=8) for camera in one.cameras]
    assert all(torch.equal(a.colour, b.colour) for a, b in zip(views, expected, strict=True))


def test_a_scene_that_cannot_be_rendered_is_named() -> None:
    one = case()
    bent = replace(one.cameras[0], distortion=(-40.0, 0.0, 0.0, 0.0))
    broken = CaseSet("balls", 1, {}, lambda: iter([one._replace(cameras=(bent, *one.cameras[1:]))]))
    with pytest.raises(InputError, match=r"one: camera distortion .* folds"):
        evaluate_views(network(), [broken])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="figures of a GPU need one")
def test_figures_are_computed_where_the_views_are() -> None:
    model, one = network().to("cuda"), case()
    views = render_case(model, one)
    assert views[0].colour.device.type == "cuda"
    rows = measure_case(one, views, 3.0)
    here = [Rendered(*(part.cpu() for part in view[:4])) for view in views]
    for row, expected in zip(rows, measure_case(one, here, 3.0), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


def test_rows() -> None:
    one = case(shade=0.2)
    rows = measure_case(one, seen(one), 3.0)
    assert [row["strict"] for row in rows] == [True, False, True]
    assert [row["seen"] for row in rows] == [False, True, False]
    assert [row["degrees"] for row in rows] == pytest.approx([20, 0, 10])
    assert [row["psnr"] for row in rows] == pytest.approx([20] * 3, abs=1e-3)
    assert [row["depth_rank"] for row in rows] == pytest.approx([1] * 3, abs=1e-4)
    assert rows[1]["copied_psnr"] == math.inf and rows[1]["copied_ssim"] == pytest.approx(1)
    assert rows[0]["copied_psnr"] < rows[2]["copied_psnr"] < math.inf
    error = (one.mean - one.pictures[0]).square().mean().item()
    assert rows[0]["mean_psnr"] == pytest.approx(-10 * math.log10(error))
    assert "lpips" not in rows[0] and "depth_rank" not in measure_case(one._replace(distance=None), seen(one), 3.0)[0]


def test_lpips_is_measured_in_both_ranges(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    files: dict[str, dict[str, Tensor]] = {"vgg16": {}, "vgg": {}}
    for name, shape in lpips_shapes():
        values = torch.randn(shape, generator=rng) / math.prod(shape[1:]) ** 0.5 if shape[1:] else torch.zeros(shape)
        files["vgg" if name.startswith("lin") else "vgg16"][name] = values.abs() if name.startswith("lin") else values
    for name, weights in files.items():
        save_file(weights, tmp_path / f"{name}.safetensors")
    distance = load_lpips([tmp_path / "vgg16.safetensors", tmp_path / "vgg.safetensors"])
    assert distance is not None and load_lpips([]) is None
    one = case()
    row = measure_case(one, seen(one), 3.0, distance)[0]
    made, truth = one.pictures[:1] + 0.1, one.pictures[:1]
    assert row["lpips"] == pytest.approx(distance(made, truth).item(), rel=1e-4)
    mistaken = distance((made + 1) / 2, (truth + 1) / 2).item()
    assert row["official_lpips"] == pytest.approx(mistaken, rel=1e-4) != row["lpips"]
    rows = measure_case(one, seen(one), 3.0, distance)
    found = summary(rows)
    assert found["official"]["lpips"] == pytest.approx(sum(row["official_lpips"] for row in rows) / 3)
    assert found["strict"]["lpips"] == pytest.approx((rows[0]["lpips"] + rows[2]["lpips"]) / 2)
    assert "official_lpips" not in found["strict"] | found["kinds"]["ball"]
    with pytest.raises(InputError, match=r"no weights lin0"):
        load_lpips([tmp_path / "vgg16.safetensors"])


def test_what_a_ray_does_not_meet_is_far() -> None:
    zero, truth = torch.zeros(2, 2), torch.tensor([[1.0, 2], [3, math.inf]])
    depth, opacity = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.5], [0.0, 0.0]])
    view = Rendered(torch.zeros(2, 2, 3), depth, opacity, zero.sum())
    assert depth_rank(view, truth, 3.0) == pytest.approx(1)  # 1, then 1 + 0.5 * 3, then 3
    assert depth_rank(view._replace(depth=zero, opacity=1 - zero), truth, 3.0) != depth_rank(view, truth, 3.0)


def test_means_are_of_scenes_not_of_views() -> None:
    def row(scene: str, kind: str, strict: bool, psnr: float, rank: float) -> dict[str, object]:
        same = dict.fromkeys(("psnr", "ssim", "copied_psnr", "copied_ssim", "mean_psnr", "mean_ssim"), psnr)
        return {"scene": scene, "kind": kind, "strict": strict, "seen": not strict, **same, "depth_rank": rank}

    rows = [row("a", "x", False, 50, 1), row("a", "x", True, 10, math.nan), row("a", "x", True, 20, 0.5)]
    rows += [row("b", "x", True, 30, math.nan), row("c", "y", True, 60, 0.1)]
    found = summary(rows)
    assert found["strict"]["psnr"] == pytest.approx((15 + 30 + 60) / 3)
    assert found["official"]["psnr"] == pytest.approx((80 / 3 + 30 + 60) / 3)
    assert found["kinds"]["x"]["psnr"] == pytest.approx(22.5) and found["kinds"]["y"]["psnr"] == 60
    assert found["scenes"]["a"]["psnr"] == 15 and found["scenes"]["b"]["depth_rank"] is None
    assert found["strict"]["depth_rank"] == pytest.approx(0.3)
    assert set(found["official"]) == {"psnr", "ssim", "depth_rank"}
    assert found["seen"] == {"psnr": 50, "ssim": 50, "depth_rank": 1}


@pytest.fixture
def sets() -> list[CaseSet]:
    def cases() -> Iterator[Case]:
        yield case()
        yield case("other", "two", 0.1)

    first = CaseSet("balls", 2, {"seed": 1}, cases)
    return [first, replace(first, name="more", split={"seed": 2})]


def test_the_result_is_plain_and_written_whole(sets: list[CaseSet], tmp_path: Path) -> None:
    sheet: list[tuple[Image.Image, str]] = []
    calls: list[tuple[float, int]] = []
    found = evaluate_views(network(), sets, sheet=sheet, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found["protocols"]) == {"official", "strict"}
    part = found["sets"]["balls"]
    assert part["digest"] == sets[0].digest != sets[1].digest == found["sets"]["more"]["digest"]
    assert len(part["rows"]) == 6 and part["rows"][1]["copied_psnr"] is None
    assert set(part["kinds"]) == {"ball", "other"} and set(part["scenes"]) == {"one", "two"}
    text = table(found)
    for word in (
        part["digest"],
        "official protocol",
        "views it saw",
        "input copied",
        "mean picture",
        "other",
        "2 scenes",
    ):
        assert word in text
    facts = card_facts(found)
    assert facts["balls PSNR"] == part["strict"]["psnr"] == facts["balls"]["psnr"]
    assert facts["more"]["split"] == sets[1].digest and facts["more"]["seen"] == found["sets"]["more"]["seen"]
    save(found, sheet, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == found
    with Image.open(tmp_path / "out" / "sheet.png") as image:
        assert image.width > 7 * 100


def test_a_row_of_the_sheet() -> None:
    one = case()
    row = sheet_row(one, seen(one))
    assert [caption for _, caption in row] == ["one", "view 0", "truth", "view 2", "truth", "view 2", "truth"]
    shown = torch.frombuffer(bytearray(row[1][0].tobytes()), dtype=torch.uint8).view(*SIZE, 3)
    expected = (one.pictures[0].permute(1, 2, 0) + 0.1).mul(255).round()
    assert (shown - expected).abs().max() <= 1


def test_the_verb_on_a_capture(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_model(tmp_path / "model")
    options = ("evaluate", "views", "--model", model, "--data", write_capture(tmp_path / "toy"))
    done = command(*options, "--out", tmp_path / "out", "--card", "--json")
    found = json.loads(done.out)
    assert found["weights"] == json.loads((model / "card.json").read_text())["digest"]
    assert found == json.loads((tmp_path / "out" / "result.json").read_text())
    part = found["sets"]["capture"]
    assert len(part["rows"]) == 12 and sum(row["strict"] for row in part["rows"]) == 2
    quality = json.loads((model / "card.json").read_text())["quality"]
    assert quality["capture PSNR"] == part["strict"]["psnr"] and quality["capture"]["split"] == part["digest"]
    again = command(*options)
    assert again.code == 0 and part["digest"] in again.out
    fill_cards(monkeypatch)
    done = command(*options, "--card", "--json")
    assert done.code == 2 and "No space left on device" in done.error
    assert json.loads(done.out)["sets"] == found["sets"]  # nothing is random
    fill_results(monkeypatch)
    done = command(*options, "--out", tmp_path / "full", "--json")
    assert done.code == 2 and "cannot write" in done.error and "No space left on device" in done.error
    assert json.loads(done.out)["sets"] == found["sets"]


def test_the_verb_refuses(command: Command, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    for options, words in (
        (("--data", tmp_path / "none"), ("none",)),
        (("-n", "0"), ("give 1 or more",)),
        (("--lpips", tmp_path / "vgg.pth"), ("no weights file",)),
        (("--model", "no-such"), ("no model",)),
        (("--data", write_capture(tmp_path / "toy"), "--images", "/"), ("images:", "relative")),
        (("--data", tmp_path / "toy" / "images", "--cache", tmp_path / "cache"), ("no test scene in",)),
    ):
        assert_refused(command("evaluate", "views", "--model", model, *options), *words)
    assert not (tmp_path / "cache").exists()
