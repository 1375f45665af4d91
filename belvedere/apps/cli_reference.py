"""The command line as a page of documentation, ``python -m belvedere.apps.cli_reference > docs/commands.md``.

Written from the commands themselves; a test compares the page with them.
"""

import re
from collections.abc import Iterator
from typing import Any

import typer

from belvedere.apps.cli import app

HEAD = """# Commands

Made of the commands themselves by `python -m belvedere.apps.cli_reference > docs/commands.md`; `belvedere VERB --help`
says the same.

Exit codes: 0 done; 1 done, but not as hoped (a picture that differs, a check that failed, some lines of a batch or some
of several files that could not be done), or a fault of Belvedere's own; 2 bad input, or no room in memory or on the
disk: one line on stderr, nothing half-written; 130 and 143 stopped by Ctrl-C and SIGTERM. Exceptions: `train` and
`personalize` save and end with 0 on SIGTERM, `serve` ends with 0 on either; a batch of which three calls in a row fail
ends with 2, and what it made until then stays.

`--json` prints results for programs on stdout; progress and errors go to stderr. `belvedere --install-completion`
teaches the shell to complete.

## Defaults of your own

What is written in the command counts first, then the environment (`BELVEDERE_GENERATE_STEPS=50`,
`BELVEDERE_EVALUATE_GENERATION_COUNT=480`), then a file, the one named by `BELVEDERE_CONFIG` or else
`belvedere/config.yaml` in `XDG_CONFIG_HOME` (`~/.config` where that is not set): a section for each verb, options by
their long names. `--no-flip` is `flip: false`. Steps of your own are left out with a solver that takes none.

```yaml
generate:
  model: fitv2-toybox
  steps: 50
evaluate:
  generation: {count: 480}
```
"""


def reference() -> str:
    """Return the page, Markdown."""
    return "\n".join([HEAD, *_pages(typer.main.get_command(app), None, "belvedere")])


def _pages(command: Any, parent: Any, name: str) -> Iterator[str]:
    """Yield the section of a command, then those of the commands it has."""
    context = command.context_class(command, info_name=name, parent=parent)
    children = getattr(command, "commands", {})
    if parent is not None:
        yield _page(command, context)
    for child in children.values():
        yield from _pages(child, context, child.name)


def _page(command: Any, context: Any) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {context.command_path}", f"`{usage}`", _text(command.help or "")]
    rows = [_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    if rows:
        parts.append("\n".join(["| | default | |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _row(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    if parameter.param_type_name == "argument":
        names = f"`{parameter.metavar or parameter.name.upper()}`"
    return f"| {names} | {_default(parameter.default)} | {_plain(parameter.help or '').replace('|', chr(92) + '|')} |"


def _default(value: Any) -> str:
    """Return a default as a cell; that of an option that is off is empty, as of one without a default."""
    if callable(value) or value is False or value in (None, "", [], ()):
        return ""
    return "on" if value is True else f"`{value}`"


def _text(text: str) -> str:
    """Return a help text as Markdown; what follows a ``\\b`` is a block of code."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = paragraph.splitlines()
        if lines[0].strip() == "\b":
            paragraphs.append("\n".join(["```", *(line.strip() for line in lines[1:]), "```"]))
        else:
            paragraphs.append(_plain(" ".join(line.strip() for line in lines)))
    return "\n\n".join(paragraphs)


def _plain(text: str) -> str:
    """Return Rich's markup as Markdown's."""
    return re.sub(r"\[(/?)bold\]", "**", text).replace("``", "`").replace("\\[", "[")


if __name__ == "__main__":
    print(reference(), end="")
