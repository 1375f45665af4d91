"""Options of the verbs that make pictures: ``belvedere generate``, ``evaluate generation``, ``evaluate captions``."""

from typing import Annotated

import typer

from belvedere.apps.requests import OWN_STEPS

Seed = Annotated[int, typer.Option(help="Picture i depends on (seed, i) alone.")]
Steps = Annotated[int | None, typer.Option(help="Sampler steps. Default: the model's own.")]
Guidance = Annotated[
    float | None, typer.Option(help="How strongly to push towards the class; 1 = not. Default: the model's own.")
]
Sizes = Annotated[
    str,
    typer.Option(
        "--size",
        "--sizes",
        metavar="WxH[,WxH...]",
        help="Width x height in pixels; picture i has the i-th, in turn. Default: the model's own.",
    ),
]
Extrapolation = Annotated[
    str | None,
    typer.Option(
        help="Positions beyond the trained size: none, vision-ntk, vision-yarn, pi ... Default: the model's own."
    ),
]
Solver = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of DiMR: multistep, published; of FiTv2: multistep, euler, heun, rk4, dopri5 (takes no --steps) ... "
        "Default: multistep.",
    ),
]
GuidancePower = Annotated[
    float | None,
    typer.Option(
        metavar="POWER", help="Let guidance change over time by the cosine rule, with this power. Default: constant."
    ),
]
GuidanceChannels = Annotated[
    int | None, typer.Option(metavar="N", help="Guide the first N channels only (FiTv2; published: 3). Default: all.")
]
GuidanceInterval = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="Guide between these shares of the way from noise, 0, to the picture, 1, alone; elsewhere a step is "
        "half the work. Default: 0,1.",
    ),
]
Prompt = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="For a model of text; several take turns.")]
Editability = Annotated[
    float, typer.Option(help="Of concepts: 0, most like their photographs, to 1, led by the prompt.")
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, or float16 (GPU).")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def written(context: typer.Context, name: str) -> bool:
    """Return whether an option was written in the command."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def steps_of(context: typer.Context) -> int | None:
    """Return the ``steps`` of a command; None where they are a default of the user's and the solver takes none."""
    meant = written(context, "steps") or context.params["solver"] not in OWN_STEPS
    return context.params["steps"] if meant else None
