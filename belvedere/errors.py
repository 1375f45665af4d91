"""The one exception a user can cause."""


class InputError(ValueError):
    """Bad input from outside: the message is one line that names the input and the mend.

    The command line prints it and exits with code 2; the library raises it like any ``ValueError``.
    """
