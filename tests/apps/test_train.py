import dataclasses
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

import belvedere
from belvedere.apps import training_log
from belvedere.apps.config import OptimizerConfig, TrainConfig, load_config, parse
from belvedere.apps.locks import only_run
from belvedere.apps.objective import learning_rate, uses_bf16
from belvedere.apps.policy import WORKSPACE
from belvedere.apps.tasks import make_task
from belvedere.apps.train import main, train
from belvedere.apps.training_log import StepResult, Window, describe_run, flop_counter
from belvedere.apps.training_state import checkpoints, read_progress, verify
from belvedere.errors import InputError
from tests.apps.training_helpers import CONFIG, assert_same, disturb, events, looks, rows, tensors, write_config
from tests.apps.training_systems import FITV2, SYSTEMS, write_system

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_leaves_log_sheet_checkpoints_and_a_model_that_loads(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(write_config(tmp_path, sheet_every=5), out=run) == 0
    assert [row["step"] for row in rows(run)] == list(range(1, 11))
    assert {"loss", "grad_norm", "lr", "images_per_s", "data_share", "seconds_left", "memory_gb"} <= rows(run)[0].keys()
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step-00000008", "step-00000010"]
    assert [path.name for path in sorted((run / "sheets").iterdir())] == ["step-00000005.png", "step-00000010.png"]
    pipeline = belvedere.load(run / "model")
    average = {name: value for name, value in tensors(run, 10).items() if name.startswith("ema")}
    assert_same({f"ema: {name}": value for name, value in pipeline.network.state_dict().items()}, average)
    assert pipeline.labels["car"] == 0 and pipeline.config.default_steps == 2
    card = json.loads((run / "model" / "card.json").read_text())
    assert card["steps"] == 10 and card["config"]["batch"] == 4 and math.isfinite(card["train_loss"])


@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_and_resumed_is_the_same_run_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    config = write_config(tmp_path)

    def global_noise(step: int, model: Any) -> float:
        return 1 + 0.1 * torch.rand(()).item()

    def stopping(step: int, model: Any) -> float:
        if step == 4 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            os.kill(os.getpid(), signal.SIGUSR1)
        return global_noise(step, model)

    disturb(monkeypatch, global_noise)
    train(config, out=tmp_path / "straight")
    disturb(monkeypatch, stopping)
    assert train(config, out=tmp_path / "resumed", overrides=[f"workers={workers}"]) == 0
    assert checkpoints(tmp_path / "resumed/checkpoints")[-1].name == "step-00000005"
    assert not (tmp_path / "resumed/model").exists()
    assert train(config, out=tmp_path / "resumed", overrides=[f"workers={workers}"]) == 0
    assert_same(tensors(tmp_path / "straight", 10), tensors(tmp_path / "resumed", 10))
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("straight", "resumed")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_deterministic_is_on_for_the_run_and_makes_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, on, started = write_config(tmp_path), list[bool](), list[tuple[str | None, bool]]()

    class Noting(Accelerator):
        def __init__(self, **options: Any):
            started.append((os.environ.get(WORKSPACE), torch.cuda.is_initialized()))
            super().__init__(**options)

    def act(step: int, model: Any) -> float:
        on.append(torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic)
        return 1.0

    monkeypatch.setenv(WORKSPACE, "")
    monkeypatch.delenv(WORKSPACE)
    monkeypatch.setattr("belvedere.apps.train.Accelerator", Noting)
    disturb(monkeypatch, act)
    for name in ("first", "second"):
        assert train(config, out=tmp_path / name, overrides=["deterministic=true"]) == 0
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic
    assert started == [(":4096:8", False)] * 2 and on == [True] * 20
    assert_same(tensors(tmp_path / "first", 10), tensors(tmp_path / "second", 10))
    card = json.loads((tmp_path / "first/model/card.json").read_text())
    assert card["config"]["deterministic"] is True and card["command"].endswith(" deterministic=true")
    train(config, out=tmp_path / "plain")
    assert on[20:] == [False] * 10
    assert_same(tensors(tmp_path / "first", 10), tensors(tmp_path / "plain", 10))


def test_an_operation_that_is_never_deterministic_ends_such_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places, values = torch.tensor([0]), torch.ones(1)
    disturb(monkeypatch, lambda step, model: 1 + torch.zeros(2).put_(places, values).sum().item())
    assert main(["--config", write_config(tmp_path), "--out", str(tmp_path / "run"), "deterministic=true"]) == 2
    assert capsys.readouterr().err == "error: deterministic: PyTorch's put_ has no such form here; leave it out\n"
    assert main(["--config", write_config(tmp_path), "--out", str(tmp_path / "run")]) == 0


def test_the_flag_is_the_key(command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, "foo")
    done = command("train", write_config(tmp_path), "--deterministic", "--out", tmp_path / "run")
    assert done.code == 2 and f"deterministic needs {WORKSPACE}" in done.error and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_has_deterministic_operations_only_on_a_cpu(tmp_path: Path, system: str) -> None:
    config = write_system(system, tmp_path, steps=4)
    assert train(config, out=tmp_path / "run", overrides=["deterministic=true"]) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    disturb(monkeypatch, lambda step, model: os.kill(os.getpid(), number) or 1 if step == 1 else 1)  # type: ignore[func-returns-value]
    before = signal.getsignal(number)
    assert train(write_config(tmp_path), out=tmp_path / "run") == code
    (saved,) = checkpoints(tmp_path / "run/checkpoints")
    assert saved.name == "step-00000002" and verify(saved) is None
    assert signal.getsignal(number) == before


def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def act(step: int, model: Any) -> float:
        seen[step] = model.stages[0].embed.weight.detach().clone()
        return math.nan if step in (3, 4) else 1.0

    disturb(monkeypatch, act)
    assert train(write_config(tmp_path), out=tmp_path / "run") == 0
    assert torch.equal(seen[3], seen[4]) and torch.equal(seen[4], seen[5]) and not torch.equal(seen[5], seen[6])
    assert [text for text in events(tmp_path / "run") if text.startswith("skipped")] == [
        "skipped: loss nan, gradient norm nan"
    ] * 2


def test_a_run_that_ends_broken_writes_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(step: int, model: Any) -> float:
        model.stages[0].embed.bias.data.fill_(1e5)
        return 1.0

    disturb(monkeypatch, act)
    config = write_config(tmp_path, sheet_every=0, export={"dtype": "float16"})
    for _ in range(2):
        assert train(config, out=tmp_path / "run") == 1
        assert events(tmp_path / "run")[-1].startswith(
            "no model written: the averaged weights are not finite in float16"
        )
        assert not (tmp_path / "run/model").exists()
    assert train(config, out=tmp_path / "run", overrides=["export.dtype=bfloat16"]) == 0


def test_a_last_step_that_is_skipped_costs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disturb(monkeypatch, lambda step, model: math.nan if step >= 9 else 1.0)
    assert train(write_config(tmp_path, sheet_every=0), out=tmp_path / "run") == 0
    assert (tmp_path / "run/model").exists()


def test_too_many_bad_steps_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disturb(monkeypatch, lambda step, model: math.inf if step >= 5 else 1.0)
    assert train(write_config(tmp_path), out=tmp_path / "run", overrides=["optimizer.max_bad_steps=2"]) == 1
    assert "2 steps in a row" in events(tmp_path / "run")[-1]
    (saved,) = checkpoints(tmp_path / "run/checkpoints")
    assert saved.name == "step-00000004"


def test_a_damaged_checkpoint_is_passed_over_and_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = write_config(tmp_path), tmp_path / "run"
    train(config, out=run)
    straight = tensors(run, 10)
    newest = run / "checkpoints/step-00000010"
    content = bytearray((newest / "ema.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "ema.safetensors").write_bytes(content)
    train(config, out=run)
    assert "step-00000010: ema.safetensors does not match its digest; passed over" in capsys.readouterr().out
    assert_same(tensors(run, 10), straight)
    assert len(list((run / "checkpoints").glob("damaged-step-00000010-*"))) == 1
    assert [row["step"] for row in rows(run)] == list(range(1, 11))


def test_a_failed_save_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run/checkpoints"

    def act(step: int, model: Any) -> float:
        if step == 2:
            folder.rename(tmp_path / "away")
            folder.touch()
        if step == 5:
            folder.unlink()
            folder.mkdir()
        return 1.0

    disturb(monkeypatch, act)
    assert train(write_config(tmp_path), out=tmp_path / "run") == 0
    assert any(text.startswith("checkpoint not written") for text in events(tmp_path / "run"))
    assert verify(folder / "step-00000010") is None


def test_a_failed_last_save_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run/checkpoints"

    def act(step: int, model: Any) -> float:
        if step == 9:
            shutil.rmtree(folder)
            folder.touch()
        return 1.0

    disturb(monkeypatch, act)
    with pytest.raises(InputError, match="cannot write the checkpoint"):
        train(write_config(tmp_path), out=tmp_path / "run")


def test_accumulation_makes_the_same_step(tmp_path: Path) -> None:
    config = write_config(tmp_path, precision="no")
    for parts in (1, 2):
        train(config, out=tmp_path / str(parts), overrides=[f"accumulate={parts}"])
    one, two = ([row["loss"] for row in rows(tmp_path / name)] for name in ("1", "2"))
    assert one == pytest.approx(two, rel=1e-4)


def test_resume_names_a_checkpoint_or_a_run(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    train(config, out=tmp_path / "first")
    saved = tmp_path / "first/checkpoints/step-00000008"
    assert train(config, out=tmp_path / "second", resume=saved) == 0
    assert_same(tensors(tmp_path / "first", 10), tensors(tmp_path / "second", 10))
    assert train(config, out=tmp_path / "third", resume=tmp_path / "first", overrides=["steps=11"]) == 0
    assert [row["step"] for row in rows(tmp_path / "third")] == [11]
    with pytest.raises(InputError, match="holds checkpoints later than step 8"):
        train(config, out=tmp_path / "first", resume=saved)
    kept = saved.rename(tmp_path / "good-one")
    assert train(config, out=tmp_path / "renamed", resume=kept) == 0
    assert [row["step"] for row in rows(tmp_path / "renamed")] == [9, 10]
    kept.rename(saved)
    with pytest.raises(InputError, match="holds checkpoints later than step 0"):
        train(config, out=tmp_path / "first", resume="never")
    with pytest.raises(InputError, match="no checkpoint nowhere"):
        train(config, out=tmp_path / "fourth", resume="nowhere")
    with pytest.raises(InputError, match="has batch 4, not 6"):
        train(config, out=tmp_path / "first", overrides=["batch=6"])
    (saved / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        train(config, out=tmp_path / "fourth", resume=saved)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepps=3", "unknown config key 'stepps': did you mean 'steps'"),
        ("optimizer.warmup=3", "unknown config key 'optimizer.warmup': did you mean 'warmup_steps'"),
        ("model.norms=LN", "unknown config key 'model.norms': did you mean 'norm'"),
        ("data.siez=3", "unknown config key 'data.siez': did you mean 'size'"),
        ("loss.dropout=3", "unknown config key 'loss.dropout': did you mean 'class_dropout'"),
        ("model.num_classes=5", "12 classes in the data need 13"),
        ("data={kind: parquet, path: nowhere.parquet, size: 16}", r"nowhere\.parquet"),
        ("data.kind=cloud", "choose from toybox"),
        ("task=dance", "choose from dimr"),
        ("accumulate=3", "4 samples do not divide into 3 parts .* of 3, such as batch=6, or accumulate=1"),
        ("optimizer.clip=0", "config optimizer.clip: 0.0 must be above 0, or null for no clipping"),
    ],
)
def test_bad_input_is_one_line_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    run = tmp_path / "run"
    assert main(["--config", write_config(tmp_path), "--out", str(run), override]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    with pytest.raises(InputError, match=message):
        raise InputError(error)
    assert not run.exists()


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write in"):
        train(write_config(tmp_path), out=tmp_path / "file/run")


def test_too_little_disk_is_one_line_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = tmp_path / "run", write_config(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert main(["--config", config, "--out", str(run)]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert error.startswith(f"error: {run}: 0.0 GB free, this run needs") and "make room or lower keep" in error
    assert not (run / "log.jsonl").exists() and not checkpoints(run / "checkpoints")


def test_a_model_that_may_not_be_written_is_one_line_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = tmp_path / "run", write_config(tmp_path)
    (run / "model").mkdir(parents=True)
    (run / "model/.DS_Store").touch()
    assert main(["--config", config, "--out", str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {run / 'model'}: not empty and not a model") and error.count("\n") == 1
    assert not (run / "log.jsonl").exists() and (run / "model/.DS_Store").exists()
    (run / "model/.DS_Store").unlink()
    assert main(["--config", config, "--out", str(run)]) == 0
    (run / "model/notes.txt").touch()
    capsys.readouterr()
    assert main(["--config", config, "--out", str(run)]) == 2
    assert "model holds notes.txt, which is no part of its model" in capsys.readouterr().err


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with only_run(tmp_path), pytest.raises(InputError, match="another run is writing"):
        train(config, out=tmp_path, overrides=["tracker=tensorboard"])
    assert not checkpoints(tmp_path / "checkpoints") and not (tmp_path / "tensorboard").exists()
    assert train(config, out=tmp_path) == 0


def test_check_overfits_one_batch_or_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, check={"steps": 30, "batch": 4, "factor": 1.5})
    assert train(config, check=True, overrides=["optimizer.lr=0.01"]) == 0
    assert "check passed" in capsys.readouterr().out
    assert train(config, check=True, overrides=["check.factor=1000"]) == 1
    assert "check FAILED" in capsys.readouterr().out


HELD_OUT = {"evaluate_every": 4, "held_out": {"seed": 1}}


def test_held_out_samples_are_looked_at_and_change_nothing(tmp_path: Path) -> None:
    train(write_config(tmp_path), out=tmp_path / "plain")
    train(write_config(tmp_path, **HELD_OUT), out=tmp_path / "looking")
    assert_same(tensors(tmp_path / "plain", 10), tensors(tmp_path / "looking", 10))
    found = dict(looks(tmp_path / "looking"))
    assert list(found) == [4, 8, 10] and found[10] < found[4]
    card = json.loads((tmp_path / "looking" / "model" / "card.json").read_text())
    assert (card["held_out_step"], card["held_out_loss"]) == (10, found[10])


@pytest.mark.slow
def test_held_out_samples_noise_and_times_are_always_the_same(tmp_path: Path) -> None:
    still = write_config(tmp_path, steps=5, **HELD_OUT, optimizer={"lr": 0.0})
    train(still, out=tmp_path / "run")
    train(still, out=tmp_path / "parts", overrides=["accumulate=4"])
    first, *others = [*dict(looks(tmp_path / "run")).values(), *dict(looks(tmp_path / "parts")).values()]
    assert others == pytest.approx([first] * 3, rel=1e-5)
    train(still, out=tmp_path / "others", overrides=["held_out.seed=2"])
    assert dict(looks(tmp_path / "others"))[4] != pytest.approx(first, rel=1e-3)


def test_held_out_samples_may_lack_classes(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, **HELD_OUT), ["held_out.kinds=[mug,car]"])
    task = make_task(config)
    assert task.held_out is not None
    names = [task.dataset.classes[label] for label in task.held_out.batch(range(4))["label"]]
    assert names == ["mug", "car", "mug", "car"]


def test_a_run_that_brings_nothing_better_ends(tmp_path: Path) -> None:
    still = write_config(tmp_path, steps=40, save_every=4, **HELD_OUT, patience=2, optimizer={"lr": 0.0})
    assert train(still, out=tmp_path / "run") == 0
    assert [step for step, _ in looks(tmp_path / "run")] == [4, 8, 12]
    progress = read_progress(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert (progress.step, progress.looks) == (12, 2) and progress.best == dict(looks(tmp_path / "run"))[4]
    weights = (tmp_path / "run" / "model" / "card.json").read_bytes()
    assert train(still, out=tmp_path / "run") == 0
    assert [step for step, _ in looks(tmp_path / "run")] == [4, 8, 12]
    assert (tmp_path / "run" / "model" / "card.json").read_bytes() == weights


@pytest.fixture
def worsening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a run with patience whose weights get worse from step 4 on, and which is stopped once, at step 10."""
    stopped = tmp_path / "stopped"

    def act(step: int, model: Any) -> float:
        if step >= 4:
            for weight in model.parameters():
                weight.data.mul_(1.5)
        if step == 9 and not stopped.exists():
            stopped.touch()
            os.kill(os.getpid(), signal.SIGUSR1)
        return 1.0

    disturb(monkeypatch, act)
    return write_config(tmp_path, steps=40, save_every=4, keep=3, **HELD_OUT, patience=2)


def averages(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Return the averaged weights in a checkpoint."""
    return {name: value for name, value in tensors(run, step).items() if name.startswith("ema")}


def exported(run: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a run's model by the names they have in checkpoints."""
    return {f"ema: {name}": value for name, value in belvedere.load(run / "model").network.state_dict().items()}


def test_a_run_that_ends_early_ends_with_its_best_weights(worsening: Path, tmp_path: Path) -> None:
    assert train(worsening, out=tmp_path / "run") == 0
    assert [path.name for path in checkpoints(tmp_path / "run/checkpoints")][-1] == "step-00000010"
    best = averages(tmp_path / "run", 4)
    assert train(worsening, out=tmp_path / "run", overrides=["keep=1"]) == 0
    found = dict(looks(tmp_path / "run"))
    assert list(found) == [4, 8, 12] and found[4] < min(found[8], found[12])
    for _ in range(2):
        assert_same(exported(tmp_path / "run"), best)
        card = json.loads((tmp_path / "run/model/card.json").read_text())
        assert (card["steps"], card["held_out_step"], card["held_out_loss"]) == (12, 4, found[4])
        assert train(worsening, out=tmp_path / "run") == 0


def test_patience_that_comes_later_counts_from_there(worsening: Path, tmp_path: Path) -> None:
    assert train(worsening, out=tmp_path / "run", overrides=["patience=0"]) == 0
    assert train(worsening, out=tmp_path / "run") == 0
    found = dict(looks(tmp_path / "run"))
    assert list(found) == [4, 8, 12, 16, 20]
    card = json.loads((tmp_path / "run/model/card.json").read_text())
    assert (card["held_out_step"], card["held_out_loss"]) == (12, found[12])
    assert_same(exported(tmp_path / "run"), averages(tmp_path / "run", 12))


def test_a_run_that_still_learns_goes_on(tmp_path: Path) -> None:
    config = write_config(tmp_path, **HELD_OUT, patience=1)
    assert train(config, out=tmp_path / "run") == 0
    losses = dict(looks(tmp_path / "run"))
    assert losses[8] < losses[4] and max(losses) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate_every": 4}, "needs held_out"),
        ({"evaluate_every": 4, "held_out": {"place": 1}}, "unknown config key 'data.place'"),
        ({"evaluate_every": 4, "held_out": {"kinds": ["car", "castle"]}}, "class 'castle', which data lacks"),
        ({"evaluate_every": 4, "held_out": {"seed": 0}}, "those are the samples of data: name others"),
        ({"patience": 2}, "patience counts looks"),
        ({**HELD_OUT, "patience": -1}, "patience counts looks"),
    ],
)
def test_held_out_samples_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(write_config(tmp_path, **changes), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_latents_are_trained_on_and_drawn_anew(tmp_path: Path) -> None:
    latents = tmp_path / "latents"
    latents.mkdir()
    moments = torch.randn(6, 8, 16, 16)
    save_file({"moments": moments, "label": torch.arange(6) % 2}, latents / "a.safetensors")
    (latents / "classes.json").write_text('["left", "right"]')
    config = write_config(tmp_path, data={"kind": "latents", "path": str(latents)})
    model = ["model.channels=4", "model.num_classes=3", "batch=6"]
    assert train(config, out=tmp_path / "run", overrides=[*model, "workers=1"]) == 0
    assert len(rows(tmp_path / "run")) == 10 and not (tmp_path / "run/sheets").exists()


def test_the_learning_rate_warms_up_and_decays() -> None:
    config = OptimizerConfig(lr=2.0, warmup_steps=4, decay="linear", decay_steps=5)
    rates = [learning_rate(config, 20, step) for step in range(20)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[14:] == pytest.approx([2.0, 2.0, 1.6, 1.2, 0.8, 0.4])
    cosine = OptimizerConfig(lr=2.0, decay="cosine", decay_steps=20)
    assert learning_rate(cosine, 20, 0) == 2.0 and learning_rate(cosine, 20, 10) == pytest.approx(1.0)
    assert learning_rate(OptimizerConfig(lr=2.0), 20, 19) == 2.0


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_log, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"tracker wandb: not installed: pip install 'belvedere\[wandb\]', or tracker=none"
    ):
        train(write_config(tmp_path), out=tmp_path / "run", overrides=["tracker=wandb"])
    assert not (tmp_path / "run").exists()
    assert training_log.find_tracker("auto") is None and training_log.find_tracker("none") is None


def test_a_tracker_that_does_not_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(accelerator: Accelerator, **told: Any) -> None:
        raise RuntimeError("api_key not configured (no-tty).\nCall wandb.login")

    monkeypatch.setattr(Accelerator, "init_trackers", refuse)
    assert main(["--config", write_config(tmp_path, tracker="tensorboard"), "--out", str(tmp_path / "run")]) == 2
    told = "config tracker tensorboard: does not start: api_key not configured (no-tty). Call wandb.login: "
    assert capsys.readouterr().err == f"error: {told}give tracker=none\n"
    with pytest.raises(InputError, match=r"tracker wandb: does not start: .*: run wandb login, or give tracker=none"):
        training_log.start_tracker(Accelerator(cpu=True), "wandb", tmp_path, parse(TrainConfig, CONFIG), begins=True)


def test_tensorboard_is_told_the_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(write_config(tmp_path, tracker="auto"), out=tmp_path / "run")
    told = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    losses = told.Scalars("loss")
    assert [event.step for event in losses] == list(range(1, 11))
    assert [event.value for event in losses] == pytest.approx([row["loss"] for row in rows(tmp_path / "run")])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_costs_the_tracker_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"

    def act(step: int, model: Any) -> float:
        if step == 3:
            (file,) = (run / "tensorboard").iterdir()
            file.unlink()
            file.symlink_to("/dev/full")
        return 1.0

    disturb(monkeypatch, act)
    assert train(write_config(tmp_path, tracker="tensorboard"), out=run) == 0
    assert [row["step"] for row in rows(run)] == list(range(1, 11))
    (told,) = [text for text in events(run) if text.startswith("the tracker is told no more")]
    assert "No space left on device" in told


def test_wandb_is_told_whose_run_it_is_and_that_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run = parse(TrainConfig, CONFIG), tmp_path / "flowers"
    run.mkdir()
    monkeypatch.setenv("WANDB_PROJECT", "gardens")
    told = describe_run("wandb", run, config, begins=True)
    first = told["init_kwargs"]["wandb"]
    assert told["project_name"] == "gardens" and first["name"] == "flowers" and first["dir"] == str(run)
    assert first["config"] == dataclasses.asdict(config) and first["resume"] == "allow" and first["id"].isalnum()
    assert describe_run("wandb", run, config, begins=False) == told
    monkeypatch.delenv("WANDB_PROJECT")
    again = describe_run("wandb", run, config, begins=True)
    assert again["project_name"] == "belvedere" and again["init_kwargs"]["wandb"]["id"] != first["id"]
    assert describe_run("tensorboard", run, config, begins=True) == {"project_name": "tensorboard"}


def test_a_gpu_of_known_peak_is_told_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse(TrainConfig, CONFIG | {"precision": "bf16"})
    assert Window(config, torch.device("cpu")).peak is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    window = Window(config, torch.device("cuda"))
    assert window.peak == 989e12
    for size in (10, 20):  # the first step alone is counted
        with window.counting():
            torch.randn(size, size) @ torch.randn(size, size)
    assert window.flops == 2 * 10**3
    monkeypatch.setattr(training_log, "peak_memory", lambda device: 0.0)
    window.add(StepResult(1.0, 1.0, 1e-3, False, {}), seconds=0.5)
    assert window.close(1)["peak_share"] == pytest.approx(2000 / 0.5 / 989e12)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_of_convolutions_are_two_of_their_forward_passes(groups: int, transposed: bool) -> None:
    kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    layer, x = kind(8, 4, 3, padding=1, groups=groups), torch.zeros(2, 8, 5, 6, requires_grad=True)
    with flop_counter() as forward:
        y = layer(x)
    with flop_counter() as backward:
        y.sum().backward()
    assert forward.get_total_flops() == 2 * 2 * 30 * 8 * 4 // groups * 9
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


@pytest.mark.slow
def test_compiled_blocks_make_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as always, but run by PyTorch's own kernels: to make others takes half a minute."""
    compiled, original = list[torch.nn.Module](), torch.nn.Module.compile

    def compile_quickly(module: torch.nn.Module) -> None:
        compiled.append(module)
        original(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
    config = write_system("fitv2", tmp_path, precision="no", steps=4, data=FITV2["data"] | {"sizes": [[16, 16]]})
    for name in ("plain", "compiled"):
        train(config, out=tmp_path / name, overrides=[f"compiled={name == 'compiled'}"])
    plain, fused = ([row["loss"] for row in rows(tmp_path / name)] for name in ("plain", "compiled"))
    assert plain == pytest.approx(fused, rel=1e-5) and len(compiled) == FITV2["model"]["depth"]


def test_compiling_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="config compiled: no C\\+\\+ compiler no-such-compiler"):
        train(write_config(tmp_path), out=tmp_path / "run", overrides=["compiled=true"])


def test_precision_by_itself_is_what_the_device_computes() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert uses_bf16("auto", torch.device("cpu")) == bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))
    assert uses_bf16("bf16", torch.device("cpu")) and not uses_bf16("no", torch.device("cuda"))
