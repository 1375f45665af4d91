"""The floors of docs/architecture.md hold: imports run downwards, without cycles, and models know no library."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import belvedere

ROOT = Path(belvedere.__file__).parent
FLOORS = {"kernels": 0, "data": 0, "generation": 1, "synthesis": 1, "compression": 1, "checkpoints": 2, "apps": 3}
GROUND = {"errors", "limits", "seeds", "files", "threads", "__version__"}
UNSAFE = {
    ("torch", "load"), ("pickle", "load"), ("pickle", "loads"), ("yaml", "load"), ("", "eval"), ("", "exec"),
    ("", "extractall"),
}  # fmt: skip
CONVERTER = "checkpoints/converter.py"


@cache
def sources() -> list[tuple[str, ast.Module]]:
    files = sorted(ROOT.rglob("*.py"))
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_text())) for path in files]


def is_module(name: str) -> bool:
    path = ROOT.parent / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or path.is_dir()


def imports_of_ours(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "belvedere":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if is_module(name) or node.module == "belvedere" else node.module for name in names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "belvedere"}
    return found


def test_imports_run_downwards() -> None:
    wrong = []
    for path, tree in sources():
        room = path.split("/")[0]
        if "/" not in path:
            continue
        for name in imports_of_ours(tree):
            target = name.split(".")[1] if "." in name else ""
            if target in GROUND or target == "":
                continue
            down = FLOORS[target] < FLOORS[room] or target == room
            if not down or (room == "kernels" and target != "kernels"):
                wrong.append(f"{path} imports {name}")
    assert wrong == []


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {}
    for path, tree in sources():
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        name = "belvedere." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        graph[name] = {found for found in imports_of_ours(top) if found != name}
    order = TopologicalSorter({name: found & graph.keys() for name, found in graph.items()})
    order.prepare()  # raises CycleError, naming the modules


def test_kernels_import_nothing_of_ours() -> None:
    for path, tree in sources():
        if path.startswith("kernels/"):
            assert all(name.startswith("belvedere.kernels") for name in imports_of_ours(tree)), path


def test_the_ground_imports_nothing_of_ours() -> None:
    for path, tree in sources():
        if path in {f"{name}.py" for name in GROUND}:
            assert imports_of_ours(tree) == set(), path


def test_nothing_unpickles_or_evaluates() -> None:
    wrong = []
    for path, tree in sources():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            unsafe = (owner, name) in UNSAFE or name == "extractall"
            if unsafe and not (path == CONVERTER and (owner, name) == ("torch", "load")):
                wrong.append(f"{path}:{node.lineno} {owner}.{name}")
    assert wrong == []


def test_models_name_no_device_or_backend() -> None:
    for path, tree in sources():
        if path.split("/")[0] not in ("generation", "synthesis", "compression"):
            continue
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not names & {"cuda", "is_cuda", "is_available", "xformers", "triton", "scaled_dot_product_attention"}, (
            path
        )


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import belvedere; spent = time.perf_counter() - start;"
        "heavy = {'torch', 'diffusers', 'numpy', 'PIL'} & set(sys.modules); print(sorted(heavy), spent < 0.3)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["[]", "True"]


def test_checkers_of_types_are_told_to_read_the_package() -> None:
    assert (ROOT / "py.typed").is_file()


def test_every_public_name_exists_and_is_documented() -> None:
    for name in belvedere.__all__:
        assert getattr(belvedere, name).__doc__, name
