"""The five systems end to end on a GPU, random weights at their published sizes: ``python benchmarks/models.py``.

- DiMR-XL/2R and FiTv2-XL/2, bfloat16: a call of 64 pictures, eager, compiled, and compiled and recorded
  (``kernels/graphs.py``), and training steps of as many, eager and compiled, with their share of this GPU's own matrix
  product; and a sampler's step of one, eager and recorded;
- pipelines of both, 25 guided steps to latents, recorded: one picture in calls of several rooms
  (``generation/rooms.py``), with which the smallest is what one takes of itself, and as many as fill a call;
- NViST: the field of a picture, and views of 160x90 with 48 samples a ray;
- SegPIC: files of 768x512, written and read;
- the U-Net of Stable Diffusion 1.5, on which concepts are learned: one guided step at 512x512.

What is compiled or recorded is compared with what is not before it is timed. FLOPs are counted by PyTorch, two a
multiply-add, of plain attention, for it does not see into ours; a training step has three times those of its forward
pass. A row that fails is stored with its error, the others go on: the JSON is written after each. ``--device cpu``
only tries the script, with small networks: it stores nothing.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import gpu
import torch
from PIL import Image
from timing import spread
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import belvedere
from belvedere.compression import exact_tables
from belvedere.compression.codec import Codec
from belvedere.compression.exact_tables import ExactTables
from belvedere.data.cameras import Camera
from belvedere.generation import rooms
from belvedere.generation.fitv2 import Layout
from belvedere.generation.fitv2_pipeline import FiTv2Pipeline
from belvedere.generation.pipelines import DiMRPipeline
from belvedere.kernels.graphs import Graphs
from belvedere.synthesis.cameras import conditions, input_camera
from belvedere.synthesis.nvist import NViST
from belvedere.synthesis.render import occupancy_for_views, render_view


class Run(NamedTuple):
    """Something that is timed. ``units``: how many things one call makes. ``plain``: the same work, not compiled, with
    which it is compared, if it is another call, and of which FLOPs are counted; None: neither. ``passes``: 3 for a
    training step, whose ``plain`` is its forward pass, a third of its FLOPs, with which nothing is compared."""

    name: str
    call: Callable[[], Any]
    units: float
    unit: str
    plain: Callable[[], Any] | None = None
    passes: int = 1


def randomised(make: Callable[[], nn.Module], device: str) -> Any:
    """Return a network in bfloat16, made on the device, with weights none of which is zero."""
    with torch.device(device):
        network = make()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    return nn.Module.to(network, device, torch.bfloat16)


def training_step(network: nn.Module, call: Callable[[], Tensor]) -> Callable[[], None]:
    """Return forward, backward and an optimizer's step."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        call().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class Denoiser(NamedTuple):
    """A network to be timed; ``call(form)``: of ``count`` pictures, by ``run`` or a compiled form of it."""

    name: str
    network: nn.Module
    run: Any
    call: Callable[[Any], Tensor]
    count: int


def make_dimr(device: str) -> Denoiser:
    """Return DiMR-XL/2R, or a small one on a CPU."""
    network = randomised(partial(belvedere.DiMR.from_variant, "XL/2R-256" if device == "cuda" else "toybox"), device)
    side, channels = network.sizes[-1].height * network.sizes[-1].ratio, network.config.channels
    count = 64 if device == "cuda" else 2

    def call(run: Any) -> Tensor:
        x = torch.ones(count, channels, side, side, device=device, dtype=torch.bfloat16)
        return run(x, torch.zeros(1, device=device), torch.zeros(count, dtype=torch.long, device=device))[-1]

    return Denoiser("DiMR-XL/2R", network, network, call, count)


def make_fitv2(device: str) -> Denoiser:
    """Return FiTv2-XL/2, or a small one on a CPU."""
    network = randomised(partial(belvedere.FiTv2.from_variant, "XL/2" if device == "cuda" else "toybox"), device)
    count, grid = (64, (16, 16)) if device == "cuda" else (2, (8, 8))
    layout = network.layout([grid] * count, "none", device)

    def call(run: Any) -> Tensor:
        x = torch.ones(count * grid[0] * grid[1], network.embed.in_features, device=device, dtype=torch.bfloat16)
        t, y = torch.full((count,), 0.5, device=device), torch.zeros(count, dtype=torch.long, device=device)
        return run(x, network.modulate(t, y), layout)

    return Denoiser("FiTv2-XL/2", network, network.run, call, count)


def pictures(made: Denoiser, device: str) -> Iterator[Run]:
    """Yield the calls of a network: as it stands, compiled, and compiled and recorded."""
    graphs, start = Graphs(), torch.empty(1, device=device)
    graphs.follow(made.network)
    compiled = torch.compile(made.run, fullgraph=True)
    plain, fast = (torch.no_grad()(partial(made.call, form)) for form in (made.run, compiled))
    recorded = torch.no_grad()(partial(graphs, lambda _: fast(), start))
    for way, call in (("eager", plain), ("compiled", fast), ("compiled, recorded", recorded)):
        yield Run(f"{made.name}, {made.count} pictures, {way}", call, made.count, "pictures", plain)


def training(made: Denoiser) -> Iterator[Run]:
    """Yield the training steps of a network: as it stands, and compiled."""
    plain = torch.no_grad()(partial(made.call, made.run))
    for way, form in (("eager", made.run), ("compiled", torch.compile(made.run, fullgraph=True))):
        step = training_step(made.network, partial(made.call, form))
        yield Run(f"{made.name}, training step of {made.count}, {way}", step, made.count, "pictures", plain, passes=3)


def dimr(device: str) -> Iterator[Run]:
    """Yield the calls of DiMR."""
    yield from pictures(make_dimr(device), device)


def fitv2(device: str) -> Iterator[Run]:
    """Yield the calls of FiTv2."""
    yield from pictures(make_fitv2(device), device)


def dimr_training(device: str) -> Iterator[Run]:
    """Yield the training steps of DiMR."""
    yield from training(make_dimr(device))


def fitv2_training(device: str) -> Iterator[Run]:
    """Yield the training steps of FiTv2."""
    yield from training(make_fitv2(device))


def sampler_steps(device: str) -> Iterator[Run]:
    """Yield a network call of one picture without guidance, eager and recorded, all that depends on time given."""
    dimr = randomised(partial(belvedere.DiMR.from_variant, "XL/2R-256" if device == "cuda" else "toybox"), device)
    fitv2 = randomised(partial(belvedere.FiTv2.from_variant, "XL/2" if device == "cuda" else "toybox"), device)
    label, height = torch.zeros(1, dtype=torch.long, device=device), dimr.sizes[-1].height * dimr.sizes[-1].ratio
    moment = torch.zeros(1, device=device)
    sizes, *places = fitv2.layout([(16, 16) if device == "cuda" else (8, 8)], "none", device)

    def step_dimr(x: Tensor, y: Tensor, time: Tensor) -> Tensor:
        return dimr(x, y=y, time=time)[-1]

    def step_fitv2(x: Tensor, rows: Tensor, *places: Tensor) -> Tensor:
        return fitv2.run(x, rows, Layout(sizes, *places))

    with torch.no_grad():
        latent = torch.ones(1, dimr.config.channels, height, height, device=device, dtype=torch.bfloat16)
        tokens = torch.ones(len(places[1]), fitv2.embed.in_features, device=device, dtype=torch.bfloat16)
        inputs_dimr = latent, label, dimr.evaluate_time(moment)
        inputs_fitv2 = tokens, fitv2.modulate(moment, label), *places
    for name, network, step, inputs in (
        ("DiMR-XL/2R", dimr, step_dimr, inputs_dimr),
        ("FiTv2-XL/2", fitv2, step_fitv2, inputs_fitv2),
    ):
        graphs, eager = Graphs(), torch.no_grad()(partial(step, *inputs))
        graphs.follow(network)
        recorded = torch.no_grad()(partial(graphs, step, *inputs))
        for way, call in (("eager", eager), ("recorded", recorded)):
            yield Run(f"{name}, sampler's step of 1, {way}", call, 1, "steps", eager)


def pipelines(device: str) -> Iterator[Run]:
    """Yield pictures by the pipelines: one in calls of other rooms, and as many as fill a call."""
    large = device == "cuda"
    dimr = partial(belvedere.DiMR.from_variant, "XL/2R-256" if large else "toybox")
    fitv2 = partial(belvedere.FiTv2.from_variant, "XL/2" if large else "toybox")
    for name, make, kind in (("DiMR-XL/2R", dimr, DiMRPipeline), ("FiTv2-XL/2", fitv2, FiTv2Pipeline)):
        pipe = kind(randomised(make, device))
        pipe.set_progress_bar_config(disable=True)
        sizes = [pipe.default_size] * 1000
        for room in (1, 4, rooms.FULL) if large else (1, 2):
            for count in {1, len(pipe.split(sizes, room)[0])}:
                call = partial(drawn, pipe, count, 25 if large else 2, room)
                yield Run(f"{name}, pipeline, {count} in calls of room {room}", call, count, "pictures")


def drawn(pipe: Any, count: int, steps: int, room: int) -> Tensor:
    """Return the latents of so many pictures of a pipeline."""
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    options = {"num_inference_steps": steps, "generator": generators, "output_type": "latent"}
    return torch.cat(list(pipe([0] * count, room=room, **options).images))


def scenes(device: str) -> Iterator[Run]:
    """Yield the field of a picture and the views of one."""
    network = randomised(NViST if device == "cuda" else partial(NViST.from_variant, "toybox"), device)
    network.field_decoder.float()  # as models are loaded
    height, width = network.config.image
    camera: Camera = input_camera((height, width), distance=1.4, fov=40.0)
    image, told = (x.to(device) for x in (torch.rand(1, 3, height, width), conditions([camera])))
    build = torch.no_grad()(partial(network, image, told))
    yield Run("NViST, field", build, 1, "fields", build)
    field = build()
    occupancy = occupancy_for_views(field)
    options = {"near": network.config.near, "far": network.config.far, "samples": 48}
    view = partial(render_view, field, camera, occupancy=occupancy, **options)
    yield Run(f"NViST, view of {width}x{height}", view, 1, "views")


def files(device: str) -> Iterator[Run]:
    """Yield a picture into a file and back."""
    torch.manual_seed(0)
    model: Any = belvedere.SegPIC.from_variant("SegPIC" if device == "cuda" else "SegPIC/8").eval()
    codec = Codec(nn.Module.to(model, device), ExactTables.of(exact_tables.make(model), model.config), "00" * 32)
    width, height = (768, 512) if device == "cuda" else (128, 64)
    noise = Image.effect_noise((width // 16, height // 16), 60).resize((width, height), Image.Resampling.BICUBIC)
    picture = noise.convert("RGB")
    content, megapixels = belvedere.encode(picture, codec, quality=1), width * height / 1e6
    yield Run("SegPIC, encode", partial(belvedere.encode, picture, codec, quality=1), megapixels, "MP")
    yield Run("SegPIC, decode", partial(belvedere.decode, content, codec), megapixels, "MP")


def guided_step(device: str) -> Iterator[Run]:
    """Yield a call of the U-Net of Stable Diffusion 1.5."""
    from diffusers import UNet2DConditionModel

    large = device == "cuda"
    sizes = {} if large else {"block_out_channels": (32, 32, 32, 32), "norm_num_groups": 8}
    unet = randomised(partial(UNet2DConditionModel, cross_attention_dim=768, **sizes), device)
    side = 64 if large else 16
    x = torch.ones(2, 4, side, side, device=device, dtype=torch.bfloat16)
    words = torch.ones(2, 77, 768, device=device, dtype=torch.bfloat16)
    call = torch.no_grad()(partial(unet, x, torch.tensor(500, device=device), words))
    yield Run("Stable Diffusion 1.5, guided step", call, 1, "steps", call)


def busiest(run: Run, count: int) -> list[dict[str, Any]]:
    """Return the kernels that take the most of a call's time on the GPU, by name: how often, and for how long."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run.call()
        torch.cuda.synchronize()
    found = sorted(profiler.key_averages(), key=lambda each: each.self_device_time_total, reverse=True)
    return [{"name": x.key[:80], "calls": x.count, "seconds": x.self_device_time_total / 1e6} for x in found[:count]]


def measured(run: Run, repeats: int, ceiling: float, count: int) -> dict[str, Any]:
    """Return the row of a run, with its ``count`` busiest kernels."""
    inputs = [(torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu"),)]
    compared = run.plain is not None and run.plain is not run.call and run.passes == 1
    apart = {"apart": gpu.apart([run.call()], [run.plain()])} if compared else {}
    taken = spread(gpu.timed(lambda _: run.call(), inputs, repeats))
    row = {"name": run.name, "seconds": taken, "unit": run.unit, "rate": run.units / taken["median"]} | apart
    if run.plain is not None:
        with FlopCounterMode(display=False) as counter, mock.patch.dict(os.environ, BELVEDERE_ATTENTION="reference"):
            run.plain()
        flops = run.passes * counter.get_total_flops()
        row |= {"flops": flops, "share of gemm": flops / taken["median"] / ceiling}
    return row | ({"kernels": busiest(run, count)} if count else {})


PARTS = {
    part.__name__: part
    for part in (sampler_steps, pipelines, scenes, files, guided_step, dimr, fitv2, dimr_training, fitv2_training)
}


def rows_of(
    part: Callable[[str], Iterator[Run]], device: str, repeats: int, ceiling: float, count: int
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a part; of a run that fails its error, and where the part itself fails that one."""
    try:
        for run in part(device):
            try:
                yield measured(run, repeats, ceiling, count)
            except Exception as error:  # whatever a GPU and its compilers raise must not cost the other rows
                yield {"name": run.name, "error": f"{type(error).__name__}: {error}"[:500]}
    except Exception as error:
        yield {"name": part.__name__, "error": f"{type(error).__name__}: {error}"[:500]}


def told(row: dict[str, Any]) -> str:
    """Return a row as text."""
    if "error" in row:
        return f"{row['name']:44} failed: {row['error'].splitlines()[0]}"
    share = f"  {row['share of gemm']:.1%} of the matrix product" if "flops" in row else ""
    head = f"{row['name']:44} {row['seconds']['median'] * 1e3:10.2f} ms {row['rate']:10.1f} {row['unit']}/s{share}"
    busy = [f"  {x['seconds'] * 1e3:8.3f} ms {x['calls']:5} x {x['name']}" for x in row.get("kernels", ())]
    return "\n".join([head, *busy])


def main() -> None:
    """Measure, store, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of the default: %(default)s")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--kernels", type=int, default=0, help="tell so many of each row's busiest kernels too")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "models.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here; --device cpu tries the script")
    if options.device == "cpu" and options.kernels:
        parser.error("--kernels tells those of a GPU")
    ceilings = gpu.ceilings(options.device)
    rows: list[dict[str, Any]] = []
    for name in options.parts.split(","):
        for row in rows_of(PARTS[name], options.device, options.repeats, ceilings["gemm"], options.kernels):
            rows.append(row)
            print(told(row), flush=True)
            if options.device == "cuda":
                about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "ceilings": ceilings}
                options.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    sys.exit(any("error" in row for row in rows))


if __name__ == "__main__":
    main()
