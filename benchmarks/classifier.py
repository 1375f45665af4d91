"""What the embedded Toybox classifier knows and refuses: ``python benchmarks/classifier.py [--card]``.

Fresh renders of a seed no network was trained on: the share named rightly, and of each kind of damage the share
rejected. ``--card`` writes the figures into the model's card as well.
"""

import argparse
import json
from pathlib import Path

import torch

from belvedere.apps.evaluate import CLASSIFIER, load_classifier
from belvedere.checkpoints import store
from belvedere.data.toybox import Toybox
from belvedere.data.toybox.damage import blur, bury, melt, recolour, shuffle, smear
from belvedere.seeds import BatchRng

SEED = 4242


@torch.no_grad()
def measure(count: int) -> dict[str, float]:
    """Return shares over ``count`` renders."""
    classifier = load_classifier()
    reject = len(classifier.config["classes"])
    toys = Toybox(64, seed=SEED)
    right, refused = 0, dict.fromkeys(("shuffle", "melt", "smear", "bury", "blur"), 0)
    recoloured = 0
    for start in range(0, count, 60):
        indices = range(start, start + 60)
        batch, rng = toys.batch(indices), BatchRng(SEED, 0, indices)
        right += int((classifier(batch["image"]).argmax(1) == batch["label"]).sum())
        recoloured += int((classifier(recolour(batch["image"], rng)).argmax(1) == batch["label"]).sum())
        for way in (shuffle, melt, smear, bury, blur):
            found = classifier(way(batch["image"], rng).clamp(-1, 1)).argmax(1)
            refused[way.__name__] += int((found == reject).sum())
    shares = {"recognised": right / count, "recognised when recoloured": recoloured / count}
    return shares | {f"rejects {name}": number / count for name, number in refused.items()}


def main() -> None:
    """Print the shares and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--card", action="store_true", help="write the figures into the embedded card")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "classifier.json")
    options = parser.parse_args()
    shares = measure(options.count)
    for name, share in shares.items():
        print(f"{name:28} {share:.1%}")
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({"count": options.count, "seed": SEED, "shares": shares}, indent=1) + "\n")
    if options.card:
        store.amend_card(store.EMBEDDED / CLASSIFIER, {"quality": shares | {"renders": options.count}})


if __name__ == "__main__":
    main()
