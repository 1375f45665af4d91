"""What the verbs of the command line share."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from belvedere.errors import InputError

if TYPE_CHECKING:
    from belvedere.apps.work import Progress

Model = Annotated[str, typer.Option(help="Embedded name, folder, or hub id OWNER/NAME or OWNER/NAME@REVISION.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


class NameOrCommand(TyperGroup):
    """A group in which ``train NAME`` is ``train run NAME``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def check_readable(path: Path) -> None:
    """Raise ``InputError`` for a file that cannot be opened: to be told before networks are imported."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def card_folder(model: str) -> Path:
    """Return the folder of a model whose card is to hold figures.

    Raises ``InputError`` for one without a card, or where nothing can be written: to be told before figures are made.
    """
    from belvedere.apps import output
    from belvedere.checkpoints import store

    folder = store.resolve(model)
    if not (folder / "card.json").is_file():
        raise InputError(f"--card: model {model} has no card.json to write into; leave it out")
    output.check_folder(folder)
    return folder


@contextmanager
def one_line() -> Iterator[None]:
    """Of processes that train together, let one print what ends them: all exit with code 2."""
    try:
        yield
    except InputError as error:
        from belvedere.apps.agreement import prints

        if prints(error):
            raise
        raise typer.Exit(2) from None


@contextmanager
def progress_bar(loading: str, working: str) -> "Iterator[Progress | None]":
    """Show a bar on stderr when it is a terminal, by one process only; yield the function that moves it."""
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(loading, total=None)
        yield lambda done, total: bar.update(task, description=working, completed=done, total=total)
