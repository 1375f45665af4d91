import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from belvedere.apps import picture_statistics, work
from belvedere.apps.cli import app
from belvedere.apps.evaluate import frechet_distance, load_classifier
from belvedere.apps.evaluate_pictures import Plan, evaluate_pictures
from belvedere.apps.image_statistics import kernel_distance, precision_recall
from belvedere.apps.picture_features import ClassifierFeatures
from belvedere.apps.picture_sources import found_at
from belvedere.apps.requests import GenerateRequest
from belvedere.checkpoints import store
from belvedere.checkpoints.tensors import metadata
from belvedere.data.toybox import Toybox
from belvedere.errors import InputError
from tests.conftest import Run, save_tiny_model
from tests.inception_helpers import published, random_inception


def save_pictures(folder: Path, count: int, size: int = 16, seed: int = 0) -> Path:
    folder.mkdir()
    images = Toybox(size, seed=seed, samples=1).batch(range(count))["image"]
    for i, image in enumerate(((images + 1) * 127.5).round().byte()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("reference") / "toys", 24)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("samples") / "others", 22, seed=1)


def evaluate(**plan: Any) -> dict[str, Any]:
    found = evaluate_pictures(Plan(**plan))
    assert found is not None and json.loads(json.dumps(found)) == found
    return found


def features(folder: Path) -> torch.Tensor:
    pictures = [np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    with torch.no_grad():
        return load_classifier().features(torch.tensor(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1)


def test_figures_are_those_of_the_formulas(toys: Path, others: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClassifierFeatures, "chunk", 5)
    found = evaluate(samples=others, reference=toys)
    made, real = features(others), features(toys)
    assert found["frechet"] == pytest.approx(frechet_distance(made, real), rel=1e-4)
    shares, kernel = precision_recall(made, real), kernel_distance(made, real)
    assert (found["precision"], found["recall"]) == (shares.precision, shares.recall)
    assert found["kernel_distance"] == pytest.approx(kernel.value, rel=1e-3)
    assert found["kernel_distance_error"] == pytest.approx(kernel.error, rel=1e-3)
    assert (found["count"], found["reference_count"], found["size"]) == (22, 24, "16x16")
    assert found["features"] == "toybox-classifier" and len(found["feature_weights"]) == 64


def test_pictures_are_no_distance_from_themselves(toys: Path, others: Path) -> None:
    same, other = evaluate(samples=toys, reference=toys), evaluate(samples=others, reference=toys)
    assert abs(same["frechet"]) < 1e-9 < other["frechet"]
    assert same["precision"] == same["recall"] == 1


def test_few_of_many_features_are_kept_evenly(toys: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Mean and covariance are of all pictures; the 20 kept ones are the first of each twentieth."""
    monkeypatch.setattr(picture_statistics, "KEPT", 20)
    monkeypatch.setattr(ClassifierFeatures, "chunk", 7)
    evaluate(samples=toys, reference=toys, statistics=tmp_path / "s.safetensors")
    kept, all_of_them = load_file(tmp_path / "s.safetensors"), features(toys)
    first = [min(i for i in range(24) if i * 20 // 24 == part) for part in range(20)]
    torch.testing.assert_close(kept["features"], all_of_them[first], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kept["pool_covariance"], torch.cov(all_of_them.double().T), rtol=1e-3, atol=1e-6)


def test_a_model_is_measured_and_its_pictures_are_exported(tiny_model: Path, toys: Path, tmp_path: Path) -> None:
    """The exported pictures are those of the request, and have the same figures; classes take turns."""
    request = GenerateRequest(str(tiny_model), count=23, steps=2, seed=3)
    found = evaluate(request=request, reference=toys, export=tmp_path / "samples.npz")
    assert found["model"] == str(tiny_model) and found["steps"] == 2 and found["seed"] == 3 and found["count"] == 23
    with np.load(tmp_path / "samples.npz") as archive:
        pictures = archive["arr_0"]
    assert pictures.shape == (23, 16, 16, 3) and pictures.dtype == np.uint8
    made = list(work.generate(request))
    assert [picture.record.label for picture in made[:6]] == [0, 1, 2, 3, 0, 1]
    assert (pictures == np.stack([np.array(picture.image) for picture in made])).all()
    again = evaluate(samples=tmp_path / "samples.npz", reference=toys)
    assert {key: again[key] for key in ("frechet", "precision", "recall", "kernel_distance")} == {
        key: found[key] for key in ("frechet", "precision", "recall", "kernel_distance")
    }
    some = evaluate(samples=tmp_path / "samples.npz", count=20, reference=toys)
    assert some["count"] == 20 and some["frechet"] != found["frechet"]


def test_the_solver_is_told_with_the_figures(tiny_fitv2: Path, toys: Path) -> None:
    request = GenerateRequest(str(tiny_fitv2), count=20, steps=2, device="cpu", solver="heun", guidance_channels=1)
    found = evaluate(request=request, reference=toys)
    assert (found["solver"], found["guidance_channels"], found["steps"]) == ("heun", 1, 2)


def test_export_alone_needs_no_reference(others: Path, tmp_path: Path) -> None:
    found = evaluate(samples=others, export=tmp_path / "all.npz")
    assert found == {"samples": str(others), "size": "16x16", "count": 22, "export": str(tmp_path / "all.npz")}
    with np.load(tmp_path / "all.npz") as archive:
        assert (archive["arr_0"][21] == np.array(Image.open(others / "021.png"))).all()


def test_some_pictures_of_a_folder_are_of_all_classes(tmp_path: Path) -> None:
    for seed, kind in enumerate("abcd"):
        save_pictures(tmp_path / kind, 6, seed=seed)
    source = found_at(tmp_path, count=12)
    every, some = (list(found.pictures(range(found.count))) for found in (found_at(tmp_path), source))
    numbers = [next(i for i in range(24) if torch.equal(every[i], one)) for one in some]
    assert source.by_class and len(numbers) == 12 and numbers == sorted(set(numbers))
    assert {number // 6 for number in numbers} == {0, 1, 2, 3}


def test_larger_references_are_cropped_and_oblong_ones_refused(others: Path, tmp_path: Path) -> None:
    large, oblong = tmp_path / "large", tmp_path / "oblong"
    for folder, size in ((large, (20, 40)), (oblong, (16, 24))):
        folder.mkdir()
        for i in range(20):
            Image.new("RGB", size, (10 * i, 255 - 9 * i, 7)).save(folder / f"{i}.png")
    assert evaluate(samples=others, reference=large)["reference_count"] == 20
    wide = evaluate(samples=oblong, reference=oblong)
    assert wide["size"] == "16x24" and abs(wide["frechet"]) < 1e-9
    Image.new("RGB", (15, 60)).save(large / "7.png")
    with pytest.raises(InputError, match=r"large, picture 17: has 15x60 pixels, fewer than 16x16: none is enlarged"):
        evaluate(samples=others, reference=large)
    with pytest.raises(InputError, match=r"large, picture 0: has 20x40 pixels, not 16x24"):
        evaluate(samples=oblong, reference=large)
    Image.new("RGB", (15, 16)).save(oblong / "7.png")
    with pytest.raises(InputError, match=r"oblong, picture 17: has 15x16 pixels, not 16x24: .* of one size"):
        evaluate(samples=oblong, reference=oblong)


def test_kept_statistics_take_the_place_of_the_pictures(toys: Path, others: Path, tmp_path: Path) -> None:
    cache = tmp_path / "toys.safetensors"
    first = evaluate(samples=others, reference=toys, statistics=cache)
    before = cache.read_bytes()
    assert evaluate(samples=others, reference=toys, statistics=cache) == first
    assert evaluate(samples=others, reference=cache) == {**first, "reference": str(cache)}
    assert cache.read_bytes() == before


def test_changed_pictures_are_noticed(others: Path, tmp_path: Path) -> None:
    """One pixel of one file, of the same length and age."""
    folder, cache = save_pictures(tmp_path / "real", 20), tmp_path / "real.safetensors"
    evaluate(samples=others, reference=folder, statistics=cache)
    file = folder / "004.png"
    told, content = file.stat(), bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))
    with pytest.raises(
        InputError, match=r"real.safetensors: statistics of other data \([0-9a-f]{60}, now [0-9a-f]{60}\)"
    ):
        evaluate(samples=others, reference=folder, statistics=cache)


def test_statistics_of_anything_else_are_refused(toys: Path, others: Path, tmp_path: Path) -> None:
    cache, changed = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    evaluate(samples=others, reference=toys, statistics=cache)
    tensors = load_file(cache)
    facts = json.loads(metadata(cache)[picture_statistics.FORM])
    broken = tensors["pool_mean"].clone()
    broken[0] = torch.inf
    cases: list[tuple[dict[str, torch.Tensor], dict[str, Any], str]] = [
        (tensors, {"weights": "0" * 64}, r"statistics of other weights \(000"),
        (tensors, {"preprocessing": "none"}, r"statistics of other preprocessing \(none, now pictures of another"),
        (tensors, {"features": "inception"}, r"statistics of other features \(inception, now toybox-classifier\)"),
        (tensors, {"size": "8x8"}, "statistics of pictures of 8x8, not 16x16"),
        (tensors, {"more": "1"}, "does not say what it has statistics of"),
        (tensors, {"count": "3"}, "does not say what it has statistics of"),
        (tensors | {"more": torch.zeros(1)}, {}, "its tensors are not those of statistics"),
        (tensors | {"features": torch.zeros(24, 3)}, {}, "its tensors are not those of statistics"),
        (tensors | {"features": tensors["features"][:19]}, {}, "its tensors are not those of statistics"),
        (tensors | {"pool_mean": tensors["pool_mean"].float()}, {}, "its tensors are not those of statistics"),
        (tensors | {"pool_mean": broken}, {}, "tensor 'pool_mean' holds NaN or infinity"),
    ]
    for content, other, message in cases:
        save_file(content, changed, {picture_statistics.FORM: json.dumps(facts | other)})
        with pytest.raises(InputError, match=message):
            evaluate(samples=others, reference=changed)
    for told in ({"another": "{}"}, {picture_statistics.FORM: "[1]"}, {picture_statistics.FORM: "{"}):
        save_file(tensors, changed, told)
        with pytest.raises(InputError, match="holds no statistics of pictures"):
            evaluate(samples=others, reference=changed)
    changed.write_bytes(b"PK\x03\x04 no")
    with pytest.raises(InputError, match=r"b.safetensors"):
        evaluate(samples=others, reference=changed)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({}, "nothing to compare with: give --reference, or --export"),
        (
            {"export": "x.npz", "features": "classifier"},
            "--statistics, --features and --inception belong to --reference",
        ),
        ({"reference": "a.safetensors", "statistics": "b.safetensors"}, "is a file of statistics already"),
        ({"reference": "toys", "statistics": "b.npz"}, r"--statistics b.npz: end the name with .safetensors"),
        ({"reference": "toys", "export": "x.png"}, r"--export x.png: end the name with .npz"),
        ({"reference": "toys", "export": "no/where.npz"}, "there is no folder no; make it first"),
        ({"reference": "toys", "features": "vgg"}, "--features must be classifier or inception, not 'vgg'"),
        ({"reference": "toys", "features": "inception"}, "pt_inception-2015-12-05-6726825d.pth"),
        ({"reference": "toys", "features": "classifier", "inception": "x.pth"}, "leave one of them out"),
        ({"reference": "nowhere"}, "no pictures at nowhere"),
        ({"reference": "toys", "count": 23}, "holds 22 pictures, not 23"),
        ({"reference": "toys", "count": 19}, "cannot measure 19 pictures: give 20 or more"),
    ],
)
def test_bad_plans_are_named(others: Path, toys: Path, plan: dict[str, Any], message: str) -> None:
    places = {key: Path(value) for key, value in plan.items() if key not in ("features", "count")}
    if plan.get("reference") == "toys":
        places["reference"] = toys
    with pytest.raises(InputError, match=message):
        evaluate(samples=others, **{**plan, **places})


def test_nothing_is_written_over(others: Path, toys: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.npz").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"mine.npz exists; choose another name"):
        evaluate(samples=others, reference=toys, export=tmp_path / "mine.npz")
    with pytest.raises(InputError, match="pictures of several sizes"):
        evaluate(request=GenerateRequest("fitv2-toybox", sizes=((48, 96), (64, 64))), reference=toys)


@pytest.mark.slow
def test_the_command_with_inception(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random weights in the published form; the reference brings its own moments, as those of the ADM suite do."""
    torch.save(published(random_inception()), tmp_path / "w.pth")
    pictures = np.stack([np.array(Image.open(toys / f"{i:03}.png")) for i in range(20)])
    given = {"mu": np.full(2048, 9.0), "sigma": np.eye(2048), "mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    np.savez(tmp_path / "reference.npz", pictures, **given)
    asked = ("--samples", tmp_path / "reference.npz", "--reference", tmp_path / "reference.npz")
    cache = tmp_path / "kept.safetensors"
    asked += ("--inception", tmp_path / "w.pth", "--statistics", cache, "--json")
    app(["evaluate", "generation", *map(str, asked)], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["features"] == "inception" and found["precision"] == found["recall"] == 1
    assert {"fid", "sfid", "inception_score", "inception_score_deviation", "kid", "kid_error"} < found.keys()
    assert 1 < found["inception_score"] < 2
    kept = load_file(cache)
    assert torch.equal(kept["pool_mean"], torch.full((2048,), 9.0, dtype=torch.float64))
    assert torch.equal(kept["spatial_covariance"], torch.eye(2023, dtype=torch.float64))
    own = kept["features"].double()
    root = (own - own.mean(0)) / 19**0.5  # tr((A I)^(1/2)) is the sum of the roots of A's eigenvalues
    expected = (own.mean(0) - 9).square().sum() + root.square().sum() + 2048 - 2 * torch.linalg.svdvals(root).sum()
    assert found["fid"] == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.slow
def test_the_command_writes_the_card(belvedere: Run, toys: Path, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    asked = ("--model", folder, "-n", 20, "--steps", 1, "--reference", toys)
    done = belvedere("evaluate", "generation", *asked, "--card", "--json")
    assert done.returncode == 0, done.stderr
    assert store.card(folder)["quality"] == json.loads(done.stdout)
    done = belvedere("evaluate", "generation", "--samples", toys, "--reference", toys, "--card")
    assert done.returncode == 2 and "--card is of a model" in done.stderr


@pytest.mark.slow
def test_two_processes_find_what_one_does(tiny_model: Path, toys: Path, tmp_path: Path) -> None:
    """Several rounds, the last of which is not full, and all bytes of the pictures and the statistics."""
    script = tmp_path / "measure.py"
    script.write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        "from belvedere.apps.evaluate_pictures import Plan, evaluate_pictures\n"
        "from belvedere.apps.picture_features import ClassifierFeatures\n"
        "from belvedere.apps.requests import GenerateRequest\n"
        "ClassifierFeatures.chunk = 4\n"
        "model, reference, out = sys.argv[1:]\n"
        "request = GenerateRequest(model, count=27, steps=2)\n"
        "kept = Path(f'{out}.safetensors')\n"
        "plan = Plan(request, reference=Path(reference), statistics=kept, export=Path(f'{out}.npz'))\n"
        "found = evaluate_pictures(plan)\n"
        "if found is not None:\n"
        "    Path(f'{out}.json').write_text(json.dumps(found))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    launchers = {"one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]}
    for name, launcher in launchers.items():
        command = [sys.executable, *launcher, str(script), str(tiny_model), str(toys), str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    for ending in (".json", ".npz", ".safetensors"):
        assert (tmp_path / f"two{ending}").read_bytes() == (tmp_path / f"one{ending}").read_bytes()
