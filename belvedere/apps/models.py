"""``belvedere models``: what is at hand, with the facts of each model's card. Nothing heavy is imported."""

import shutil
import textwrap
from pathlib import Path
from typing import Any

from belvedere.checkpoints import store

_SAID = ("name", "about", "digest", "classes")
"""Of a card, what its table says in another place."""
_STATES = {True: "verified", False: "does not match the card: damaged or changed", None: "no card to compare with"}


def facts(name_or_path: str) -> dict[str, Any]:
    """Return what is known of a model: name, system, classes, default steps and guidance, bytes, digest, card.

    ``intact`` is whether the files match the digest in the card; None without a card. Raises ``InputError`` when
    there is no such model.
    """
    folder = store.resolve(name_or_path)
    index = store.read_json(folder / "model_index.json")
    labels, card, digest = index.get("id2label"), store.card(folder), store.digest(folder)
    return {
        "name": name_or_path,
        "system": str(index.get("_class_name", "?"))
        .removesuffix("Pipeline")
        .removesuffix("Codec")
        .removesuffix("Model"),
        "classes": list(labels.values()) if isinstance(labels, dict) else [],
        "steps": index.get("default_steps"),
        "guidance": index.get("default_guidance"),
        "bytes": size(folder),
        "digest": digest,
        "intact": card["digest"] == digest if "digest" in card else None,
        "card": card,
    }


def size(folder: Path) -> int:
    """Return the bytes of a model's weights."""
    return sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))


def listing() -> list[dict[str, Any]]:
    """Return the facts of every embedded model."""
    return [facts(name) for name in store.embedded()]


def verify(name_or_path: str) -> list[str]:
    """Return what is wrong with the files of a model, a line each; nothing where every byte is as it was written.

    Raises ``InputError`` when there is no such model.
    """
    folder = store.EMBEDDED / name_or_path if name_or_path in carried() else store.resolve(name_or_path)
    return store.faults(folder)


def carried() -> list[str]:
    """Return the names of all that the package carries: models, and networks that measure them."""
    return sorted(path.parent.name for path in store.EMBEDDED.glob("*/card.json"))


def quality(card: dict[str, Any]) -> str:
    """Return the measured figures of a card in one line."""
    figures = card.get("quality")
    if not isinstance(figures, dict):
        return "not measured"
    measured = {name: value for name, value in figures.items() if isinstance(value, float) and name != "guidance"}
    return ", ".join(f"{name} {value:.3g}" for name, value in measured.items())


def print_listing(rows: list[dict[str, Any]]) -> None:
    """Print models on stdout: what each is, what it is for and how good it is."""
    if not rows:
        print("no models are embedded in this build; train one, or give --model a folder or a hub id")
    width = shutil.get_terminal_size().columns
    for row in rows:
        digest = "damaged" if row["intact"] is False else row["digest"][:12]
        classes = f", {len(row['classes'])} classes" if row["classes"] else ""
        print(f"{row['name']}: {row['system']}{classes}, {row['bytes'] / 1e6:.1f} MB, {digest}")
        for text in (row["card"].get("about", ""), quality(row["card"])):
            print(textwrap.indent(textwrap.fill(text, width - 2), "  "))


def print_facts(row: dict[str, Any]) -> None:
    """Print one model's facts and card on stdout."""
    lines = {
        "name": row["name"],
        **{key: row["card"][key] for key in ("about",) if key in row["card"]},
        "system": row["system"],
        "classes": ", ".join(row["classes"][:40]) + (", ..." if len(row["classes"]) > 40 else ""),
        **({} if row["steps"] is None else {"defaults": f"{row['steps']} steps, guidance {row['guidance']}"}),
        "size": f"{row['bytes'] / 1e6:.1f} MB",
        "digest": f"{row['digest']} ({_STATES[row['intact']]})",
        **{key: _flat(value) for key, value in row["card"].items() if key not in _SAID},
    }
    width = max(map(len, lines))
    for key, value in lines.items():
        print(f"{key:{width}}  {value}")


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    return ", ".join(map(_flat, value)) if isinstance(value, list) else str(value)
