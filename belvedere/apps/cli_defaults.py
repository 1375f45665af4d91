"""Defaults of a user's own: the environment, and a file of them.

    written in the command  >  BELVEDERE_VERB_OPTION in the environment  >  config.yaml  >  built in

The file is ``BELVEDERE_CONFIG``, or ``belvedere/config.yaml`` in ``XDG_CONFIG_HOME`` (``~/.config``); in it a section
for each verb, in that one for each verb of it, and in those options by their long names:

    generate:
      model: fitv2-toybox
      steps: 50
    evaluate:
      generation: {count: 480}
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from belvedere.errors import InputError

PREFIX = "BELVEDERE"
"""Of environment variables: ``BELVEDERE_GENERATE_STEPS`` is the default of ``belvedere generate --steps``."""
MAX_BYTES = 1 << 20


def defaults_file() -> tuple[Path, bool]:
    """Return where the file of defaults is, and whether somebody said so (then it has to be there)."""
    if named := os.environ.get(f"{PREFIX}_CONFIG"):
        return Path(named), True
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "belvedere" / "config.yaml", False


def read_defaults(command: Any) -> dict[str, Any]:
    """Return the user's own defaults for a group of commands, by names of parameters: the file's and the environment's.

    Raises ``InputError`` that names the file and the key for what no verb or option is called, and for a file that is
    not YAML.
    """
    path, named = defaults_file()
    values = _read(path) if named or path.is_file() else {}
    return _section(command, values, str(path), PREFIX)


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"defaults {path}: {error.strerror}; mend or unset {PREFIX}_CONFIG") from error
    if len(text) > MAX_BYTES:
        raise InputError(f"defaults {path}: has more than {MAX_BYTES} bytes; that is no file of defaults")
    if not text.strip():
        return {}
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"defaults {path}: is not YAML ({' '.join(str(error).split())[:200]})") from error


def _section(command: Any, values: Any, where: str, prefix: str) -> dict[str, Any]:
    """Return the defaults of one command by names of parameters, those of its own commands inside.

    ``prefix``: of its variables in the environment.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"defaults {where}: must have keys and values, not {str(values)[:80]!r}")
    commands, options = getattr(command, "commands", {}), _options(command)
    for key in values:
        if key not in commands and key not in options:
            near = difflib.get_close_matches(str(key), [*commands, *options], n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join([*commands, *options][:20])}"
            raise InputError(f"defaults {where}: knows no {str(key)[:80]!r}; {hint}")
    inside = {
        name: _section(child, values.get(name, {}), f"{where}: {name}", f"{prefix}_{_upper(name)}")
        for name, child in commands.items()
    }
    found: dict[str, Any] = {name: section for name, section in inside.items() if section}
    for name, parameter in options.items():
        if name in values:
            found[parameter.name] = _value(values[name], parameter, f"{where}: {name}")
        if told := os.environ.get(f"{prefix}_{_upper(name)}"):
            found[parameter.name] = _value(told, parameter, name)
    return found


def _upper(name: str) -> str:
    return name.upper().replace("-", "_")


def _options(command: Any) -> dict[str, Any]:
    """Return the parameter that each long option of a command sets."""
    return {
        flag.removeprefix("--"): parameter
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
        if flag.startswith("--") and flag != "--help"
    }


def _value(value: Any, parameter: Any, where: str) -> Any:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float | bool) for item in items):
        raise InputError(f"defaults {where}: must be a text, a number, true or false, or a list of them")
    return items if parameter.multiple else value
