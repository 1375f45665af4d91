"""What the command line says of what went wrong: one line, and an exit code."""

import errno

from belvedere.errors import InputError, out_of_memory

_UNIX = ("fcntl", "resource")
"""Modules that Python has on Unix alone."""


def told(error: Exception) -> tuple[str, int]:
    """Return what is said of an error, and the exit code: 2 for what a person can mend, 1 for a fault of ours."""
    if isinstance(error, InputError):
        return str(error), 2
    if hasattr(error, "format_message"):  # of the command line's parser
        return f"{error.format_message()} (belvedere VERB --help lists what there is)", 2
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        room = "; make room or choose another place" if error.errno == errno.ENOSPC else ""
        return f"{error.strerror or error}{where}{room}", 2
    if out_of_memory(error):
        return "out of memory: use a smaller model, --dtype bfloat16 or --device cpu", 2
    if isinstance(error, ModuleNotFoundError) and error.name in _UNIX:
        return f"no {error.name} in this Python: batches, the studio and training need Linux (or WSL on Windows)", 2
    from belvedere.kernels.backends import BackendError

    if isinstance(error, BackendError):
        return f"{error} (BELVEDERE_ATTENTION asks for it)", 2
    return f"unexpected {type(error).__name__}: {error} (BELVEDERE_DEBUG=1 shows where; please report it)", 1
