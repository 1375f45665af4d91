"""Opens the whole corpus in this process under an audit hook: ``python -m tests.attacks.run FOLDER``.

One line of JSON a file says what came of it, in what time and memory; the last line, what was executed.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from belvedere.errors import InputError
from tests.attacks.checkpoints import checkpoints
from tests.attacks.corpus import MARK, Attack
from tests.attacks.documents import documents
from tests.attacks.pictures import pictures

FORBIDDEN = (
    "pickle.find_class", "os.system", "os.exec", "os.fork", "os.forkpty", "os.spawn", "os.posix_spawn", "os.startfile",
    "socket.connect", "socket.bind",
)  # fmt: skip
"""Events that opening a file never needs."""
CODE = ("exec", "compile", "code.__new__", "ctypes.dlopen")
"""Events of running code, which importing a module of this machine has too."""
CHILD = "belvedere.checkpoints.converter"


class Watch:
    """An audit hook that notes what was executed while it is ``on``."""

    def __init__(self) -> None:
        self.on, self.seen, self.children = False, list[str](), 0
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "subprocess.Popen":
            self.children += CHILD in arguments[1]
            if CHILD not in arguments[1] or arguments[0] != sys.executable:
                self.seen.append(f"{event} {arguments[1]}")
        elif event in FORBIDDEN or (event in CODE and not _importing() and _foreign(event, arguments)):
            self.seen.append(f"{event} {str(arguments)[:200]}")


def _importing() -> bool:
    """Whether a module is being imported, as readers do when they are first used."""
    frame = sys._getframe()
    while frame.f_back is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _foreign(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether code is run that is no module's on this machine."""
    if event not in ("exec", "compile"):
        return True
    name = arguments[0].co_filename if event == "exec" else arguments[1]
    name = name.decode() if isinstance(name, bytes) else str(name)
    return not name.startswith("<frozen") and not Path(name).is_file()


def peak() -> float:
    """Return the most MB this process has held since ``forget``."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def forget() -> None:
    """Let the peak begin anew at what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def children_peak() -> float:
    """Return the most MB that one child has held."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def work() -> tuple[float, float]:
    """Return the seconds of work so far: of this process, and of its children."""
    spent = os.times()
    return spent.user + spent.system, spent.children_user + spent.children_system


def attempt(attack: Attack) -> dict[str, Any]:
    """Open one file; return what came of it."""
    forget()
    before, (began, began_child) = peak(), work()
    outcome, message, right = "opened", "", False
    start = time.monotonic()
    try:
        result = attack.open()
        right = attack.right(result)
        del result
    except InputError as error:
        outcome, message = "InputError", str(error)
    except BaseException as error:
        outcome, message = type(error).__name__, str(error)[:300]
    ended, ended_child = work()
    return {
        "name": attack.name,
        "expected": attack.message,
        "outcome": outcome,
        "message": message,
        "right": right,
        "seconds": ended - began,
        "seconds of the child": ended_child - began_child,
        "seconds on the clock": time.monotonic() - start,
        "megabytes": peak() - before,
    }


def main(folder: Path, kinds: list[str]) -> None:
    """Write the corpus, open a right file of each kind so that everything is loaded, then all of them under watch."""
    makers = {"checkpoints": checkpoints, "pictures": pictures, "documents": documents}
    attacks = {kind: makers[kind](folder / kind) for kind in kinds}
    watch = Watch()
    seconds = 0.0
    for attack in (attack for kind in attacks.values() for attack in kind if not attack.message):
        found = attempt(attack)  # loads what opening loads
        if attack.name == "a right one":
            seconds = found["seconds of the child"]
    usual = {"seconds": seconds, "megabytes": children_peak()}
    for kind, list_ in attacks.items():
        for attack in list_:
            before = watch.children
            watch.on = True
            found = attempt(attack)
            watch.on = False
            print(json.dumps({"kind": kind, **found, "children": watch.children - before}), flush=True)
    marks = [str(path) for path in folder.rglob(MARK)] + [str(path) for path in Path.cwd().glob(MARK)]
    end = {"executed": watch.seen, "marks": marks}
    print(json.dumps({**end, "usual child": usual, "child megabytes": children_peak()}))


def control(folder: Path) -> None:
    """Open gadgets as one must not, to show that the watch sees it."""
    import pickle

    from tests.attacks.pickles import as_pickle, gadgets

    watch = Watch()
    for body in gadgets(folder / MARK).values():
        watch.on = True
        try:
            pickle.loads(as_pickle(body))  # noqa: S301
        except Exception:
            pass
        finally:
            watch.on = False
    print(json.dumps({"executed": watch.seen, "marks": [str(path) for path in folder.rglob(MARK)]}))


if __name__ == "__main__":
    if sys.argv[2:] == ["control"]:
        control(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
