"""``python -m belvedere`` is the ``belvedere`` command."""

from belvedere.apps.cli import main

if __name__ == "__main__":
    main()
