import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from belvedere.apps.cli import app
from belvedere.apps.cli_reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def test_the_page_is_that_of_the_commands() -> None:
    assert PAGE.read_text() == reference(), "python -m belvedere.apps.cli_reference > docs/commands.md"


def test_every_place_of_the_file_of_defaults_is_named() -> None:
    for place in ("`BELVEDERE_CONFIG`", "`belvedere/config.yaml` in `XDG_CONFIG_HOME` (`~/.config`"):
        assert place in reference()


def test_defaults_are_shown_but_for_what_is_off() -> None:
    page = reference()
    for row in ("`--flip`, `--no-flip` | on", "`--seed` | `0`", "`--square` | ", "`--editability` | `0.0`"):
        assert f"| {row} |" in page


def test_every_option_says_what_it_is() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert [row for row in rows if not row.split("|")[3].strip()] == []


def test_help_loses_nothing_to_rich() -> None:
    """In square brackets without a backslash it sees a style, and drops them."""
    texts = list(_helps(typer.main.get_command(app)))
    assert len(texts) > 150
    for text in texts:
        assert Text.from_markup(text).plain == re.sub(r"\[/?bold\]|\\(?=\[)|\x08", "", text)
    assert "OWNER/NAME[@REVISION]" in reference() and "'belvedere[evaluate]'" in reference()


def _helps(command: Any) -> Iterator[str]:
    yield from (part.help for part in [command, *command.params] if getattr(part, "help", None))
    for child in getattr(command, "commands", {}).values():
        yield from _helps(child)
