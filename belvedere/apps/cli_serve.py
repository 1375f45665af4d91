"""The verb ``belvedere serve``."""

import os
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from belvedere.errors import InputError


def serve(
    host: Annotated[str, typer.Option(help="Address to serve on. Another than this machine's own needs --auth.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to serve on.")] = 7860,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="USER:PASSWORD",
            help="Who may come in. Other users of this machine can read it here: better set BELVEDERE_AUTH.",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where results are kept. Default: belvedere/studio in XDG_DATA_HOME or ~/.local/share."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="Also offer this model; any number of them."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
) -> None:
    """Open the studio: one page on which pictures are made, personalised, turned and compressed.

    It works without a network, and only this machine can reach it unless --host says otherwise. Ctrl-C ends it; what
    was made stays in the folder.

    [bold]Examples[/bold]

    \b
      belvedere serve --open
      BELVEDERE_AUTH=ada:secret belvedere serve --host 0.0.0.0 --port 8000
    """
    from belvedere.apps.web.serve import Settings, default_folder
    from belvedere.apps.web.serve import serve as run

    given = auth if auth is not None else os.environ.get("BELVEDERE_AUTH") or None
    settings = Settings(folder or default_folder(), host, port, given, device, _models(model or ()))

    def ready(address: str) -> None:
        print(f"The studio is at {address} (Ctrl-C ends it); results are kept in {settings.folder}", flush=True)
        if open_page:
            webbrowser.open(address)

    run(settings, ready=ready)


def _models(texts: Sequence[str]) -> dict[str, Path]:
    found = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise InputError(f"--model {text[:80]!r}: write NAME=FOLDER, like mine=runs/mine/model")
        found[name] = Path(path)
    return found
