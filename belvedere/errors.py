"""What a user, or a file, can cause."""


class InputError(ValueError):
    """Bad input from outside: the message is one line that names the input and the mend.

    The command line prints it and exits with code 2; the library raises it like any ``ValueError``.
    """


class CommonError(InputError):
    """What the other files of a request would meet too, such as a full disk or a model that is not there."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error is that memory ran out: Python's, or PyTorch's on the CPU or a GPU."""
    told = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or "out of memory" in told or "allocate memory" in told


class BitstreamError(InputError):
    """A compressed file or stream that cannot be decoded. Every reason has a class of its own."""


class TruncatedError(BitstreamError):
    """It ends before it should."""


class DamagedError(BitstreamError):
    """What it says does not fit together: a checksum, a length, a number outside its range."""


class UnsupportedError(BitstreamError):
    """It is no file of ours, of a version unknown here, or larger than allowed."""


class WrongModelError(BitstreamError):
    """It was made with another model than the one at hand."""
