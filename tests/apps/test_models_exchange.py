"""Models in and out: official files as folders, other number formats, graphs, and what an upload would send."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import belvedere
from belvedere.apps import models_push
from belvedere.apps.models_exchange import export, import_official, rounding
from belvedere.checkpoints import official, store
from belvedere.errors import InputError
from belvedere.synthesis.nvist import NViST
from tests.checkpoints.test_autoencoder import save_tiny_autoencoder
from tests.conftest import Run
from tests.generation import test_dimr, test_fitv2
from tests.official_segpic import golden_weights

WEIGHTS = "network/diffusion_pytorch_model.safetensors"
NVIST = Path(__file__).parents[1] / "golden" / "nvist_full_vm.safetensors"


@pytest.fixture(scope="module")
def segpic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official file of SegPIC at an eighth of its width."""
    path = tmp_path_factory.mktemp("official") / "segpic_0018_best.safetensors"
    save_file(golden_weights(8, "segpic-a"), path)
    return path


def test_an_official_file_becomes_a_verified_model(segpic: Path, tmp_path: Path) -> None:
    digest = import_official(segpic, "segpic", tmp_path / "codec")
    card = store.card(tmp_path / "codec")
    assert card["digest"] == digest and card["imported from"]["file"] == segpic.name
    assert store.faults(tmp_path / "codec") == []
    codec, network = belvedere.load(tmp_path / "codec", device="cpu"), belvedere.load(segpic, device="cpu")
    assert type(codec).__name__ == "Codec" and type(network).__name__ == "SegPIC"
    state = codec.model.state_dict()
    assert all(torch.equal(state[key], x) for key, x in network.state_dict().items())


def test_what_a_file_does_not_tell_is_asked_for(tmp_path: Path) -> None:
    weights = {name[3:]: x for name, x in load_file(NVIST).items() if name.startswith("sd.")}
    save_file(weights, tmp_path / "nvist.safetensors")
    with pytest.raises(InputError, match=r"pass config=.*near"):
        import_official(tmp_path / "nvist.safetensors", "nvist", tmp_path / "out")
    with pytest.raises(InputError, match="--near and --far goes with nvist"):
        import_official(tmp_path / "nvist.safetensors", "dimr", tmp_path / "out", distances=(0.1, 2.0))
    with pytest.raises(InputError, match="--system 'gan': choose from dimr"):
        import_official(tmp_path / "nvist.safetensors", "gan", tmp_path / "out")
    with pytest.raises(InputError, match="check the path"):
        import_official(tmp_path / "none.pth", "dimr", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    config = {"near": 0.15, "far": 1.9, "encoder_heads": 3, "decoder_heads": 2}
    assert isinstance(belvedere.load(tmp_path / "nvist.safetensors", device="cpu", config=config), NViST)


def test_the_front_door_says_what_it_cannot_open(tiny_model: Path, tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"w.safetensors: not official weights of dimr, fitv2"):
        belvedere.load(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="config goes with official files"):
        belvedere.load(tiny_model, config={})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_in_another_format(tiny_model: Path, tmp_path: Path, dtype: str) -> None:
    export(str(tiny_model), tmp_path / "half", dtype=dtype)
    card, kind = store.card(tmp_path / "half"), getattr(torch, dtype)
    assert card["exported from"] == store.digest(tiny_model) and "quality" not in card
    assert 0 < card["rounding"] < {"bfloat16": 3e-3, "float16": 4e-4}[dtype]
    before, after = load_file(tiny_model / WEIGHTS), load_file(tmp_path / "half" / WEIGHTS)
    assert all(torch.equal(after[key], x.to(kind)) for key, x in before.items())
    assert store.faults(tmp_path / "half") == []
    assert store.load(tmp_path / "half", device="cpu").config.default_steps == 4


def test_the_card_of_a_second_export_tells_of_the_first(tiny_model: Path, tmp_path: Path) -> None:
    for source, name, dtype in (("", "half", "bfloat16"), ("half", "whole", "float32"), ("whole", "third", "int8")):
        export(str(tmp_path / source if source else tiny_model), tmp_path / name, dtype=dtype)
    cards = [store.card(tmp_path / name) for name in ("half", "whole", "third")]
    told = [{key: card[key] for key in ("exported from", "dtype", "rounding")} for card in cards]
    assert [card.get("earlier exports", []) for card in cards] == [[], told[:1], told[:2]]
    assert told[0]["rounding"] > 0 and told[1]["rounding"] == 0


def test_a_model_is_not_exported_onto_itself_or_in_forms_there_are_none(tiny_model: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"out": tiny_model}, "is the model itself"),
        ({"out": tmp_path / "x", "kind": "onnx", "dtype": "bfloat16"}, "graphs are exported in float32"),
        ({"out": tmp_path / "x", "kind": "pickle"}, "--format 'pickle': choose from safetensors"),
        ({"out": tiny_model / "card.json", "dtype": "int8"}, "is a file: choose a folder"),
        ({"out": tiny_model / "card.json", "kind": "torch-export"}, "is a file: choose a folder"),
        ({"out": tmp_path / "x", "dtype": "int4"}, "--dtype 'int4': choose from float32, bfloat16, float16, int8"),
    ):
        with pytest.raises(InputError, match=message):
            export(str(tiny_model), **options)  # type: ignore[arg-type]


def test_a_folder_needs_a_name(segpic: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^\.: no name of a folder"):
        import_official(segpic, "segpic", Path())
    with pytest.raises(InputError, match=r"^\.: no name of a folder"):
        export(str(tiny_model), Path())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_a_models_is_refused_before_the_work(
    tiny_model: Path, segpic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sd15").mkdir()
    (tmp_path / "sd15/model_index.json").write_text("{}")
    export(str(tiny_model), tmp_path / "model")
    (tmp_path / "model/.git").mkdir()
    (tmp_path / "model/.git/HEAD").write_text("ref")
    monkeypatch.setattr(store, "verify", lambda *_: pytest.fail("the model was read"))
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("the file was read"))
    for folder, message in (("sd15", "not empty and not a model that Belvedere wrote"), ("model", "holds .git/HEAD")):
        with pytest.raises(InputError, match=message):
            export(str(tiny_model), tmp_path / folder)
        with pytest.raises(InputError, match=message):
            import_official(segpic, "segpic", tmp_path / folder)
    assert (tmp_path / "sd15/model_index.json").read_text() == "{}" and (tmp_path / "model/.git/HEAD").exists()


def test_numbers_beyond_a_format_are_not_made_infinite() -> None:
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, 1e6)
    for dtype in ("float16", "int8"):
        with pytest.raises(InputError, match="tensor weight has numbers beyond its range"):
            rounding(layer, dtype)
    assert rounding(layer, "float32") == 0


def test_an_import_is_not_made_infinite(segpic: Path, tmp_path: Path) -> None:
    weights = load_file(segpic)
    name = next(name for name in weights if name.endswith("conv_out.weight"))
    save_file({**weights, name: weights[name] + 1e6}, tmp_path / "segpic.safetensors")
    with pytest.raises(InputError, match=r"--dtype float16: tensor \S+ has numbers beyond its range"):
        import_official(tmp_path / "segpic.safetensors", "segpic", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_an_autoencoder_that_cannot_serve_is_refused_before_the_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published networks are too large for a test: a small one stands in for what was read."""
    monkeypatch.setattr(official, "load_official", lambda *_: pytest.fail("the file was read"))
    file, out = tmp_path / "dimr.pth", tmp_path / "out"
    file.touch()
    with pytest.raises(InputError, match="no autoencoder nowhere: give a folder"):
        import_official(file, "dimr", out, vae="nowhere")
    with pytest.raises(InputError, match=r"scales latents by 0\.13025, training by 0\.18215"):
        import_official(file, "dimr", out, vae=str(save_tiny_autoencoder(tmp_path / "sdxl", scaling_factor=0.13025)))
    assert not out.exists()
    monkeypatch.setattr(official, "load_official", lambda system, file, config: test_dimr.tiny())
    import_official(file, "dimr", out, vae=str(save_tiny_autoencoder(tmp_path / "sd")))
    assert store.faults(out) == [] and (out / "vae").is_dir()


@pytest.mark.parametrize(
    ("config", "side", "guidance"), [(None, 16, 1.5), ("XL/2", 16, 1.5), ("HR-XL/2", 128, 1.65), ("HR-3B/2", 128, 1.5)]
)
def test_a_network_of_high_resolution_makes_large_pictures_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str | None, side: int, guidance: float
) -> None:
    monkeypatch.setattr(official, "load_official", lambda system, file, config: test_fitv2.tiny(channels=3, patch=4))
    (tmp_path / "fitv2.bin").touch()
    import_official(tmp_path / "fitv2.bin", "fitv2", tmp_path / "out", config=config)
    made = store.load(tmp_path / "out", device="cpu")
    assert made.default_size == (side, side) and made.config.default_guidance == guidance
    export(str(tmp_path / "out"), tmp_path / "half", dtype="bfloat16")
    assert store.load(tmp_path / "half", device="cpu").default_size == (side, side)


def test_options_of_other_systems_are_refused(tmp_path: Path) -> None:
    for system, options, message in (
        ("neti", {"dtype": "bfloat16"}, "--dtype goes with dimr and"),
        ("nvist", {"config": "XL/2"}, "--config goes with dimr and fitv2 and segpic, not with nvist"),
    ):
        with pytest.raises(InputError, match=message):
            import_official(tmp_path / "x.pth", system, tmp_path / "out", **options)  # type: ignore[arg-type]


def test_a_scene_model_keeps_what_it_takes_for_granted(tmp_path: Path) -> None:
    export("nvist-toybox", tmp_path / "model", dtype="bfloat16")
    index = store.read_json(store.EMBEDDED / "nvist-toybox" / "model_index.json")
    made = store.read_json(tmp_path / "model" / "model_index.json")
    assert made == index and index["default_pitch"] != 0


@pytest.mark.slow
def test_a_graph_of_a_model(tiny_model: Path, tmp_path: Path) -> None:
    (file,) = export(str(tiny_model), tmp_path / "graphs", kind="torch-export")
    assert file.name == "network-denoiser.pt2" and [path.name for path in file.parent.iterdir()] == [file.name]


# Uploads


def test_an_upload_is_the_manifest_and_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    export(str(tiny_model), tmp_path / "model")
    (tmp_path / "model/.cache").mkdir()
    (tmp_path / "model/.cache/token.json").write_text("secret")
    made = models_push.plan(str(tmp_path / "model"), "me/toys")
    assert set(made.files) == {
        "README.md",
        "card.json",
        "manifest.json",
        "model_index.json",
        "network/config.json",
        WEIGHTS,
    }
    sent: list[models_push.Plan] = []
    assert models_push.push(made, lambda plan: sent.append(plan) or "address") == "address"  # type: ignore[func-returns-value]
    assert sent == [made] and made.message == f"Belvedere model {store.digest(tmp_path / 'model')[:12]}"


def test_what_is_not_as_it_was_written_is_not_uploaded(tiny_model: Path, tmp_path: Path) -> None:
    export(str(tiny_model), tmp_path / "model")
    (tmp_path / "model/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is not pushed: notes.txt is not in manifest.json"):
        models_push.plan(str(tmp_path / "model"), "me/toys")
    for name in ("toys", "me/../toys", "/etc/passwd", "me/toys/more"):
        with pytest.raises(InputError, match="write OWNER/NAME"):
            models_push.plan(str(tiny_model), name)


def test_the_hubs_reason_is_one_line(tiny_model: Path) -> None:
    def refuse(plan: models_push.Plan) -> str:
        raise RuntimeError("403\nForbidden")

    with pytest.raises(InputError, match=r"me/toys: the hub did not take it \(RuntimeError: 403 Forbidden\)"):
        models_push.push(models_push.plan(str(tiny_model), "me/toys"), refuse)


@pytest.mark.slow
def test_the_verbs(belvedere: Run, tiny_model: Path, tmp_path: Path) -> None:
    export(str(tiny_model), tmp_path / "model")
    done = belvedere("models", "verify", tmp_path / "model", "dimr-toybox", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["dimr-toybox"] == []
    done = belvedere("models", "push", tmp_path / "model", "--to", "me/toys", "--dry-run")
    assert done.returncode == 0 and "6 files" in done.stdout and "would go to me/toys" in done.stdout
    (tmp_path / "model/model_index.json").open("a").write(" ")
    done = belvedere("models", "verify", tmp_path / "model")
    assert done.returncode == 1 and "model_index.json has" in done.stdout
    done = belvedere("models", "verify")
    assert done.returncode == 2 and "--all" in done.stderr
