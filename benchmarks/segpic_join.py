"""Joins the weights that the last run of segpic-photo began with: ``python benchmarks/segpic_join.py MODEL OTHER OUT``.

``MODEL`` gives the transforms of pictures and the factors of the rates, ``OTHER`` what makes and reads the side
information. Prints the digest of OUT, which ``results/segpic_runs.json`` has as what that run began with.
"""

import argparse
from pathlib import Path

import belvedere
from belvedere.apps.finetune import is_part
from belvedere.checkpoints.codecs import save_codec

PARTS = (
    "analysis1",
    "analysis2",
    "synthesis1",
    "synthesis2",
    "prototypes1",
    "encoder_rat",
    "decoder_rat",
    "gain",
)
"""What is taken of the first."""


def main() -> None:
    """Join and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    model, other = (belvedere.load_codec(path).model for path in (options.model, options.other))
    taken = {name: value for name, value in model.state_dict().items() if is_part(name, PARTS)}
    other.load_state_dict(other.state_dict() | taken)
    print(save_codec(other, "float16", options.out, {}))


if __name__ == "__main__":
    main()
