"""Pages show what was measured: their tables and figures are those of benchmarks/results."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from belvedere.compression.rate_distortion import bd_rate

ROOT = Path(__file__).parents[1]


def page(name: str) -> str:
    """Return a page of the docs, its lines joined where only they end."""
    return re.sub(r"(?<!\n)\n(?![\n|])", " ", (ROOT / "docs" / name).read_text())


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


def test_the_seconds_of_the_studio() -> None:
    spreads = {name: spread for name, spread in results("studio.json").items() if isinstance(spread, dict)}
    assert spreads
    for name, spread in spreads.items():
        row = f"| {name} | " + " | ".join(f"{spread[kind]:.1f}" for kind in ("median", "fastest", "slowest")) + " |"
        assert row in page("studio.md"), f"docs/studio.md lacks the row {row}"


def test_the_seconds_of_imports() -> None:
    found = {name: spreads for name, spreads in results("start.json").items() if isinstance(spreads, dict)}
    assert found
    for name, spreads in found.items():
        row = f"| {name} | {spreads['with']['median']:.2f} | {spreads['without']['median']:.2f} |"
        assert row in page("studio.md"), f"docs/studio.md lacks the row {row}"


def test_the_seconds_of_overfitting_one_batch() -> None:
    found = results("check.json")["seconds"]
    names = ", ".join(f"`{name}`" for name in [*found][:-1]) + f" and `{[*found][-1]}`"
    medians = [f"{spread['median']:.0f}" for spread in found.values()]
    told = f"`--check` of {names} took {', '.join(medians[:-1])} and {medians[-1]} seconds"
    assert told in page("training.md"), f"docs/training.md lacks: {told}"


def test_the_rates_of_batches() -> None:
    found = results("batch.json")
    assert all(batch["network_share"] > 0.99 for batches in found["said"].values() for batch in batches if batch)
    assert not any(batch.get("waited") for batches in found["said"].values() for batch in batches)
    for name, rates in found["pictures_per_second"].items():
        row = f"| {name} | {statistics.median(rates):.2f} | {max(rates):.2f} | {min(rates):.2f} |"
        assert row in page("batch.md"), f"docs/batch.md lacks the row {row}"


def test_the_wait_for_data() -> None:
    toys, pictures = (f"{run['median']:.1%}".replace("%", " %") for run in results("data_wait.json")["runs"])
    told = f"{toys} of the time for `dimr-toybox` and {pictures} for `dimr-cifar10` at a batch of 32"
    assert told in page("training.md")


PRECISION = results("precision_cost.json")


@pytest.mark.parametrize("model", PRECISION["results"])
def test_the_cost_of_fewer_bits(model: str) -> None:
    for dtype, found in PRECISION["results"][model].items():
        row = f"| {model} | {dtype} | {precision_row(dtype, found)} |"
        assert row in page("checkpoints.md"), f"docs/checkpoints.md lacks the row {row}"


def precision_row(dtype: str, found: dict[str, Any]) -> str:
    """Return the cells of a number format: megabytes, PSNR of all and of the farthest, what else was measured."""
    if "refused" in found:
        return "refused | | |"
    same = "" if dtype == "float32" else "the same"
    far = [same if found[key] is None else f"{found[key]:.1f}" for key in ("psnr", "worst")]
    facts = {
        "recognised": "recognised {:.2f}",
        "bits_per_pixel": "{:.4f} bits a pixel",
        "truth": "{:.2f} dB to the truth",
    }
    told = ", ".join(text.format(found[key]) for key, text in facts.items() if key in found)
    return f"{found['bytes'] / 1e6:.1f} | {far[0]} | {far[1]} | {told}"


def test_the_sizes_of_what_is_compared_for_it() -> None:
    machine = PRECISION["machine"]
    assert f"{machine['count']} pictures of each generator at {machine['steps']} steps" in page("checkpoints.md")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("model, float32, full check", "{copies:.2f} times the result in float32"),
        ("model, float32, fast check", "({copies:.2f} with `fast`)"),
        ("model, bfloat16, full check", "{copies:.2f} of the half as large bfloat16"),
        ("shards, bfloat16, full check", "(in shards {copies:.2f})"),
        ("int8, float32, full check", "{copies:.2f} from int8 to float32"),
        ("import model_ema.safetensors, float32", "({result_mb:.0f} MB) takes {copies:.2f} times its bytes"),
        ("import model_ema.bin, bfloat16", "the child that reads it holds {child_mb:.0f} MB"),
    ],
)
def test_the_memory_that_opening_takes(run: str, words: str) -> None:
    assert words.format(**results("store.json")["results"][run]) in page("checkpoints.md")


def test_the_seconds_of_conditioning() -> None:
    found = results("neti.json")["conditioning"]
    names = {"one by one": "16 layers one by one, as published", "one batch": "one batch"}
    names |= {"start shared": "and the tokens before the placeholder once", "bfloat16": "and in bfloat16"}
    for name, words in names.items():
        seconds = found["seconds"][name]
        median, least, most = statistics.median(seconds), min(seconds), max(seconds)
        row = f"| {words} | {median:.2f} | {least:.2f} to {most:.2f} | {found['gain'][name]:.2f} |"
        assert row in page("personalization.md"), f"docs/personalization.md lacks the row {row}"


def test_the_operations_of_conditioning() -> None:
    found = results("neti.json")["conditioning"]
    rate = found["gflop"] / min(found["seconds"]["one batch"])
    told = f"{found['gflop']:.0f} GFLOP, {rate:.0f} GFLOP/s at its fastest in one batch"
    assert told in page("personalization.md"), f"docs/personalization.md lacks: {told}"


KODAK = results("kodak.json")


def compared(kind: str, coder: str) -> str:
    """Return how many bits our codec needs beside another at the same likeness."""
    percent = KODAK["bd_rate"][kind]["segpic-photo"][coder]
    return f"{abs(percent):.0f} % {'fewer' if percent < 0 else 'more'}"


def test_the_rates_of_small_files() -> None:
    for point in KODAK["curves"]["segpic-photo"]:
        row = "| {quality:.0f} | {bpp:.3f} | {psnr:.2f} | {ms_ssim:.4f} |".format(**point)
        assert row in page("segpic.md"), f"docs/segpic.md lacks the row {row}"


def test_the_bits_beside_other_codecs() -> None:
    names = {"WebP": "WebP method 6", "JPEG XL": "JPEG XL effort 7", "JPEG 2000": "JPEG 2000 9/7"}
    names["AVIF"] = "AVIF speed 6 4:4:4 tune=psnr"
    others = [f"{compared('psnr', coder)} than {name}" for name, coder in names.items()]
    jpeg, webp = (compared("ms_ssim", coder) for coder in ("JPEG 4:2:0", "WebP method 6"))
    told = f"needs {compared('psnr', 'JPEG 4:2:0')} bits than JPEG 4:2:0, {', '.join(others[:-1])} and {others[-1]}"
    assert told in page("segpic.md"), f"docs/segpic.md lacks: {told}"
    assert f"by MS-SSIM {jpeg} than JPEG and {webp} than WebP" in page("segpic.md")
    ours, webp_curve = (
        {point["bpp"]: point["psnr"] for point in KODAK["curves"][name]} for name in ("segpic-photo", "WebP method 6")
    )
    better = [psnr > np.interp(bpp, list(webp_curve), list(webp_curve.values())) for bpp, psnr in ours.items()]
    assert better == [True] * 7 + [False], "above quality 7 WebP has the higher PSNR"
    told = f"take {compared('psnr', 'JPEG 4:2:0')} bits than JPEG, and {compared('psnr', 'WebP method 6')} than WebP"
    assert told in (ROOT / "README.md").read_text()


def test_the_bytes_of_what_is_no_photograph() -> None:
    found = results("codec.json")["halves"].values()
    sizes, likeness = ([f"{one['bytes'] / 1000:.1f}" for one in found], [f"{one['psnr']:.1f}" for one in found])
    told = f"take {sizes[0]}, {sizes[1]} and {sizes[2]} kB at qualities 1, 4 and 8"
    told += f", at {likeness[0]}, {likeness[1]} and {likeness[2]} dB"
    assert told in page("segpic.md"), f"docs/segpic.md lacks: {told}"


def test_what_the_runs_of_the_codec_brought() -> None:
    runs = results("segpic_runs.json")["runs"]
    card = json.loads((ROOT / "belvedere/checkpoints/embedded/segpic-photo/card.json").read_text())
    assert (card["digest"], card["began_with"]) == (runs[4]["digest"], runs[4]["began_with"])
    assert runs[4]["joined"] == [runs[2]["digest"], runs[3]["digest"]]
    assert f"ended at step {runs[3]['steps']:,}" in page("segpic.md")
    assert runs[2]["largest_mean"]["8.0"] > 10**6
    begun = [run["began_with"] for run in runs[1:4]]
    assert begun == [runs[before]["digest"] for before in (0, 1, 0)]

    def brought(curve: list[dict[str, float]]) -> str:
        points, first = (
            tuple(zip(*((p["bpp"], p["psnr"]) for p in c), strict=True)) for c in (curve, runs[0]["kodak"])
        )
        return f"{bd_rate(*points, *first):+.0f} %"

    for seed, run in enumerate(runs[1:], 1):
        told = re.search(rf"`(seed={seed} [^`]*)`[^|]*\| (\d+) \| ([-+]\d+ %) \|", page("segpic.md"))
        assert told and set(told[1].split()) <= set(run["command"].split())
        assert (float(told[2]), told[3]) == (round(run["seconds"] / 60), brought(run["kodak"]))
    assert f"they stood at {brought(runs[4]['kodak_before'])} before their first step" in page("segpic.md")
    fewer = brought(runs[4]["kodak"]).removeprefix("-")
    assert f"crops of 256 pixels: {fewer} fewer bits than before at equal PSNR" in (ROOT / "CHANGELOG.md").read_text()


def test_the_seconds_of_small_files() -> None:
    photo, full = (results("segpic.json")[variant] for variant in ("photo", "SegPIC"))
    for name in ("encode", "decode", "analysis", "synthesis", "analysis, as stored", "synthesis, as stored"):
        row = f"| {name} | {photo['seconds'][name]['median']:.2f} | {full['seconds'][name]['median']:.1f} |"
        assert row in page("segpic.md"), f"docs/segpic.md lacks the row {row}"
    row = f"| peak memory beside the libraries | {photo['peak_mb']:,.0f} MB | {full['peak_mb']:,.0f} MB |"
    assert row in page("segpic.md"), f"docs/segpic.md lacks the row {row}"
    rates = [[variant["symbols_per_second"][way] / 1e6 for variant in (photo, full)] for way in ("writing", "reading")]
    writing, reading = (f"{min(rate):.0f} to {max(rate):.0f}" for rate in rates)
    assert f"writes {writing} million numbers a second and reads {reading}" in page("segpic.md")


def test_what_the_layout_of_weights_saves() -> None:
    seconds = [variant["seconds"] for variant in results("segpic.json").values()]
    medians = [
        (each[part]["median"], each[f"{part}, as stored"]["median"])
        for each in seconds
        for part in ("analysis", "synthesis")
    ]
    saved = [1 - placed / stored for placed, stored in medians]
    told = f"{100 * min(saved):.0f} to {100 * max(saved):.0f} %"
    assert f"saves {told} of the time" in page("segpic.md")
    assert f"take {told} less time" in (ROOT / "CHANGELOG.md").read_text()


def test_the_files_beside_what_the_network_says() -> None:
    over = results("codec.json")["mean_file_over_estimate"]
    told = [f"{100 * abs(share - 1):.1f} % {'larger' if share > 1 else 'smaller'}" for share in over.values()]
    text = f"is on average {told[0]} at quality 1, {told[1]} at 4 and {told[2]} at 8"
    assert text in page("segpic.md"), f"docs/segpic.md lacks: {text}"
    largest = max(abs(row["file_over_estimate"] - 1) for row in results("codec.json")["rows"])
    assert f"the largest difference is {100 * largest:.1f} %" in page("segpic.md")


def test_what_tiles_and_regions_cost() -> None:
    found = results("codec.json")
    tiles, one = (found["seams"][name] for name in ("tiles of 256", "one tile"))
    alike, marked = (found["regions"][name] for name in ("all alike", "the middle matters"))
    for told in (
        f"{tiles['near seams']:.1f} dB within 8 pixels of the seams",
        f"the same pixels in one tile {one['near seams']:.1f} and {one['elsewhere']:.1f}.",
        f"cost {100 * tiles['bytes'] / one['bytes'] - 100:.0f} % more bytes",
        f"the file is {100 - 100 * marked['bytes'] / alike['bytes']:.1f} % smaller",
        f"the marked part is unchanged ({alike['inside']:.1f} and {marked['inside']:.1f} dB)",
        f"the rest falls from {alike['outside']:.1f} to {marked['outside']:.1f} dB",
    ):
        assert told in page("segpic.md"), f"docs/segpic.md lacks: {told}"


def test_the_aims_of_scenes() -> None:
    card = json.loads((ROOT / "belvedere/checkpoints/embedded/nvist-toybox/card.json").read_text())
    known, unseen = (card["quality"][name] for name in ("toys", "toys of unseen kinds"))
    assert known["psnr"] > 22
    for part, digits in ((known, 1), (unseen, 2)):
        gain = part["psnr"] - part["copied_psnr"]
        assert gain > 3 and part["psnr"] - part["mean_psnr"] > 3 and part["depth_rank"] > 0.8
        told = f"are {gain:.{digits}f} dB above the copy"
        assert told in page("nvist.md"), f"docs/nvist.md lacks: {told}"
        assert f"at {part['depth_rank']:.3f} in depth" in page("nvist.md")
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"{known['psnr']:.1f} dB on unseen toys" in changes
    assert f"{unseen['psnr']:.1f} dB on toys of unseen kinds" in changes
    many = results("nvist_views.json")
    assert many["weights"] == card["digest"], "belvedere evaluate views -n 16 is to be run again"
    toys, others = (many["sets"][name]["strict"] for name in ("toys", "toys of unseen kinds"))
    told = f"give {toys['psnr']:.1f} dB for toys and {others['psnr']:.1f} dB for unseen kinds, which are "
    assert told + f"{others['psnr'] - others['copied_psnr']:.1f} dB above the copy there" in page("nvist.md")
    seen = [part["seen"]["psnr"] for part in (known, unseen)]
    assert f"shown again at {seen[0]:.1f} and {seen[1]:.1f} dB" in page("nvist.md")
    shares = [10 ** ((part["psnr"] - part["seen"]["psnr"]) / 10) for part in (known, unseen)]
    assert f"{shares[0]:.0%} and {shares[1]:.0%} are there already".replace("%", " %") in page("nvist.md")


def test_the_runs_of_the_embedded_scenes() -> None:
    runs = results("nvist_runs.json")["runs"]
    card = json.loads((ROOT / "belvedere/checkpoints/embedded/nvist-toybox/card.json").read_text())
    assert [run["began_with"] for run in runs] == [None, *(run["digest"] for run in runs[:-1])]
    for key in ("began_with", "digest", "steps", "seconds", "device"):
        assert card[key] == runs[-1][key], key
    config = card["config"]
    told = f"`seed={config['seed']} batch={config['batch']} steps={config['steps']} loss.rays={config['loss']['rays']}"
    assert told in page("nvist.md"), f"docs/nvist.md lacks: {told}"
    scenes = sum(run["steps"] * run["batch"] for run in runs)
    lent = [run for run in runs if run["device"].startswith("NVIDIA")]
    minutes = [run["seconds"] / 60 for run in runs if run not in lent]
    seconds = sum(run["seconds"] for run in lent)
    told = f"{round(scenes, -3):,} scenes, in {seconds:.0f} s of a GPU and {sum(minutes):.0f} min of two CPU cores"
    assert told in page("nvist.md"), f"docs/nvist.md lacks: {told}"
    for run in lent:
        assert f"({run['seconds']:.0f} s of an {run['device'].split()[1]})" in page("nvist.md")
    for length in minutes:
        assert f"({length:.0f} min of two CPU cores)" in page("nvist.md")


def test_the_figures_of_scenes() -> None:
    card = json.loads((ROOT / "belvedere/checkpoints/embedded/nvist-toybox/card.json").read_text())
    for name in ("toys", "toys of unseen kinds"):
        found = card["quality"][name]
        cells = [f"{found[key]:.1f} dB" for key in ("psnr", "copied_psnr", "mean_psnr")]
        cells += [f"{found[key]:.2f}" for key in ("ssim", "copied_ssim", "depth_rank")]
        row = f"| {name} | {' | '.join(cells)} |"
        assert row in page("nvist.md"), f"docs/nvist.md lacks the row {row}"


def test_the_seconds_of_scenes() -> None:
    model, field = results("nvist.json"), results("field.json")
    parts = {"": model, "solid: ": field["solid"], "soft: ": field["soft"]}
    for prefix, found in parts.items():
        for name, spread in found["seconds"].items():
            memory = f"{found['peak_mb'][name]:.0f}" if name in found["peak_mb"] else ""
            seconds = " | ".join(f"{spread[kind]:.3f}" for kind in ("median", "fastest", "slowest"))
            row = f"| {prefix}{name} | {seconds} | {memory} |"
            assert row in page("nvist.md"), f"docs/nvist.md lacks the row {row}"
    rates = model["gflop_a_second"]
    spoken = (
        f"at {rates['product, float32']:.0f} GFLOP/s in float32 and at {rates['product, bfloat16']:.0f} in bfloat16"
    )
    assert f"is {model['gflop']:.0f} GFLOP" in page("nvist.md") and spoken in page("nvist.md")
    ours = [f"{rates[f'published, {dtype}']:.0f}" for dtype in ("float32", "bfloat16")]
    assert f"the field at {ours[0]} and at {ours[1]}." in page("nvist.md")
    assert f"it would take {model['gflop'] / rates['product, bfloat16']:.2f} s" in page("nvist.md")
    told = [
        model["psnr_quick_and_exact"],
        *(field[scene]["differences"]["view, PSNR in dB"] for scene in ("solid", "soft")),
    ]
    assert "{:.1f} dB (`model`), {:.1f} dB (`solid`) and {:.1f} dB (`soft`)".format(*told) in page("nvist.md")


def test_the_seconds_of_fitv2() -> None:
    found = results("fitv2.json")
    said = [f"{found['network']['bfloat16']['flops'] / 1e9:.0f} GFLOP"]
    for dtype in ("bfloat16", "float32"):
        row, seconds = found["network"][dtype], found["network"][dtype]["seconds"]
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        peak = f"{row['share_of_peak']:.0%} of {row['gemm_peak_flops'] / 1e9:.0f} GFLOP/s".replace("%", " %")
        said.append(f"| {dtype} | {spread} | {peak} |")
    packing, sampling = found["packing"], found["sampling"]["seconds"]
    packed, padded = (statistics.median(packing["seconds"][name]) for name in ("packed", "padded"))
    said += [
        f"({packing['tokens']} tokens, {100 * packing['fill_of_padded']:.0f} % of the padded form)",
        f"takes {packed:.2f} s packed and {padded:.2f} s in the official",
        f"with its mask: {packing['padded_over_packed']:.2f} times as long",
        f"Packed it costs {packing['packed_over_token_sum']:.2f} times what {packing['tokens']} tokens cost",
        f"outputs differ by at most {packing['largest_difference']:.0e}",
        "take {:.2f} s with a step's shared work done once and {:.2f} s without".format(
            *(statistics.median(sampling[name]) for name in ("once", "each step"))
        ),
    ]
    for words in said:
        assert words in page("fitv2.md"), f"docs/fitv2.md lacks: {words}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def test_the_runs_of_the_embedded_network_of_sizes() -> None:
    found, said = results("fitv2_runs.json"), page("fitv2.md")
    first, last = found["runs"]
    card = json.loads((ROOT / "belvedere/checkpoints/embedded/fitv2-toybox/card.json").read_text())
    assert first["began_with"] is None and last["began_with"] == first["digest"]
    for key in ("began_with", "digest", "steps", "seconds", "device", "train_loss"):
        assert card[key] == last[key], key
    for run in (first, last):
        assert f"| {run['steps']:,} | {run['seconds'] / 60:.0f} |" in said
    assert (
        f"seed={card['config']['seed']} finetune.weights=fitv2-toybox precision={card['config']['precision']}" in said
    )
    losses = found["held_out_loss"].values()
    assert f"fell from {max(losses):.3f} to {min(losses):.3f} in the second run" in said


def test_the_pictures_of_many_sizes() -> None:
    found, said = results("extrapolation.json"), page("fitv2.md")
    card = json.loads((ROOT / "belvedere/checkpoints/embedded/fitv2-toybox/card.json").read_text())
    assert {row["weights"] for row in found["rows"]} == {card["digest"]}
    *trained, plain, extended = found["rows"]
    for row in trained:
        assert f"| {row['size']} | {percent(row['recognised'])} | {row['ratio']:.1f} |" in said
    (count,) = {row["count"] for row in trained}
    assert f"name {count} pictures of each trained size" in said
    shares = [percent(row["recognised"]) for row in (plain, extended)]
    ratios = f"{plain['ratio']:.1f} and {extended['ratio']:.1f} times that of two real sets"
    told = f"{plain['size']} it names {shares[0]} of {plain['count']}, {shares[1]} with vision-ntk"
    assert f"{told}; the distances are {ratios}" in said
    before = [
        f"{percent(share)} at {size}" for size, share in results("fitv2_runs.json")["runs"][0]["recognised"].items()
    ]
    assert f"The first run's weights: {', '.join(before[:-1])} and {before[-1]}." in said
    assert set(found["real_recognised"].values()) == {1.0} and "The judge names 100 % of real renders" in said


def test_what_a_studio_holds() -> None:
    found = results("soak.json")
    told = f"({len(found['rounds'])} rounds) memory, threads and open files did not grow"
    assert told in page("studio.md") and f"{found['grown']['memory_mb'] * 100:+.1f} % memory" in page("studio.md")
    assert max(found["grown"].values()) <= 0
