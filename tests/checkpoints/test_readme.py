"""The card that people read: what a model is first, what only machines read last."""

import json

import pytest

from belvedere.checkpoints import readme, store
from belvedere.checkpoints.components import CODEC


def test_what_a_model_is_comes_first() -> None:
    facts = {
        "config": {"a": [1, "```"]},
        "name": "mine",
        "about": "Makes <small> files.",
        "steps": 7,
        "license": "CC0-1.0",
    }
    text = readme.text(facts, {"_class_name": CODEC})
    _, head, body = text.split("---\n", 2)
    assert 'license: "CC0-1.0"' in head and 'pipeline_tag: "image-to-image"' in head
    assert body.startswith("\n# mine\n\nSegPIC: pictures as small files. Makes &lt;small> files.\n\nLoad it")
    assert "| steps | 7 |" in body and "| config |" not in body and "| about |" not in body
    shown = body.split("```json\n")[1].split("\n```")[0]
    assert json.loads(shown.replace("` ` `", "```")) == facts["config"]
    assert body.count("```") == 2, "nothing in a value ends the block"


def test_without_facts_the_title_is_what_is_known() -> None:
    assert "# SegPIC: pictures as small files\n" in readme.text({}, {"_class_name": CODEC})
    assert "# A model\n" in readme.text({}, {}) and "details" not in readme.text({}, {})


@pytest.mark.parametrize("name", sorted(path.parent.name for path in store.EMBEDDED.glob("*/card.json")))
def test_embedded_models_say_what_they_are(name: str) -> None:
    card = store.card(store.EMBEDDED / name)
    assert card["name"] == name and len(card["about"]) > 40
    assert card["about"].replace("<", "&lt;") in (store.EMBEDDED / name / "README.md").read_text()
