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

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from belvedere.errors import InputError

PREFIX = "BELVEDERE"
"""Of environment variables: ``BELVEDERE_GENERATE_STEPS`` is the default of ``belvedere generate --steps``."""


def defaults_file() -> Path | None:
    """Return the file of defaults: the one that somebody named, or the usual one where that can be reached."""
    if named := os.environ.get(f"{PREFIX}_CONFIG"):
        return Path(named)
    try:
        usual = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "belvedere" / "config.yaml"
        return usual if usual.is_file() else None
    except (OSError, RuntimeError):  # a home that may not be looked into; none is known
        return None


def read_defaults(command: Any) -> dict[str, Any]:
    """Return the user's own defaults for a group of commands, by names of parameters: the file's and the environment's.

    Raises ``InputError`` that names the file and the key for what no verb or option is called, and for a file that is
    not YAML.
    """
    return _merged(_from_file(command), _from_environment(command, PREFIX))


def _from_file(command: Any) -> dict[str, Any]:
    path = defaults_file()
    if path is None:
        return {}
    from belvedere.apps.written import read_mapping

    values = read_mapping(path, f"defaults {path}")
    try:
        return _section(command, values, "")
    except InputError as error:
        raise InputError(f"defaults {path}: {error}") from error


def _section(command: Any, values: Any, where: str) -> dict[str, Any]:
    """Return the file's defaults of one command, those of its own commands inside; ``where``: its key in the file."""
    from belvedere.apps.written import check_keys

    if not isinstance(values, Mapping):
        raise InputError(f"{where.rstrip('.')}: must have keys and values, not {str(values)[:80]!r}")
    commands, options = getattr(command, "commands", {}), _options(command)
    check_keys(values, [*commands, *options], where)
    found = {}
    for name, value in values.items():
        if name in commands:
            found[name] = _section(commands[name], value, f"{where}{name}.")
        else:
            found[options[name].name] = _value(value, options[name], f"{where}{name}")
    return found


def _from_environment(command: Any, prefix: str) -> dict[str, Any]:
    """Return the defaults of one command, and of its own, in variables that begin with ``prefix``."""
    found = {
        name: section
        for name, child in getattr(command, "commands", {}).items()
        if (section := _from_environment(child, f"{prefix}_{_upper(name)}"))
    }
    for name, parameter in _options(command).items():
        if told := os.environ.get(f"{prefix}_{_upper(name)}"):
            found[parameter.name] = _value(told, parameter, name)
    return found


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return both; where both tell something, what ``second`` does."""
    both = {key: _merged(first[key], value) for key, value in second.items() if isinstance(first.get(key), dict)}
    return {**first, **second, **both}


def _upper(name: str) -> str:
    return name.upper().replace("-", "_")


def _options(command: Any) -> dict[str, Any]:
    """Return the parameter that each long option of a command sets.

    Those that only end the command, like ``--version``, are left out, and ``--no-flip`` too: it is ``flip: false``.
    """
    return {
        flag.removeprefix("--"): parameter
        for parameter in command.params
        if parameter.expose_value and not parameter.is_eager
        for flag in parameter.opts
        if flag.startswith("--")
    }


def _value(value: Any, parameter: Any, where: str) -> Any:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float | bool) for item in items):
        raise InputError(f"{where}: must be a text, a number, true or false, or a list of them")
    return items if parameter.multiple else value
