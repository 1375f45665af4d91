"""Nothing in the package unpickles or evaluates: no name that can is imported, called or mentioned, but in one file."""

import ast

from tests.test_architecture import CONVERTER, sources

MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "code",
    "codeop",
    "runpy",
}
"""Modules that no file imports; pickletools, which takes pickles apart without running them, is none of them."""
CALLS = {"eval", "exec", "compile", "__import__"}
"""Builtins."""
ATTRIBUTES = {
    "extractall", "unpack_archive", "unsafe_load", "full_load", "unsafe_load_all", "full_load_all", "allow_pickle",
    "Unpickler", "UnsafeLoader", "FullLoader", "add_constructor", "add_multi_constructor",
}  # fmt: skip
"""Whatever they are attributes of."""
OWNED = {
    ("torch", "load"), ("torch", "hub"), ("torch.jit", "load"), ("torch.package", "PackageImporter"), ("np", "load"),
    ("numpy", "load"), ("yaml", "load"), ("yaml", "load_all"), ("yaml", "Loader"), ("os", "system"), ("os", "popen"),
}  # fmt: skip
KEYWORDS = {"allow_pickle": (False,), "weights_only": (True,), "trust_remote_code": (False,), "shell": (False,)}
"""Keywords, and the values that are harmless."""


def faults(tree: ast.Module) -> list[str]:
    """Return what in a module can unpickle, evaluate or unpack, with its line."""
    found: list[str] = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            found += [f"{line} import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [(node.module, alias.name) for alias in node.names]
            bad = node.module.split(".")[0] in MODULES or any(name in OWNED or name[1] in ATTRIBUTES for name in names)
            found += [f"{line} from {node.module}"] if bad else []
        elif isinstance(node, ast.Name) and node.id in CALLS:
            found.append(f"{line} {node.id}")
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            found += [f"{line} {owner}.{node.attr}"] if node.attr in ATTRIBUTES or (owner, node.attr) in OWNED else []
        elif isinstance(node, ast.keyword) and node.arg in KEYWORDS:
            value = node.value.value if isinstance(node.value, ast.Constant) else None
            found += (
                [] if value in KEYWORDS[node.arg] else [f"{node.value.lineno} {node.arg}={ast.unparse(node.value)}"]
            )
    return found


def test_nothing_unpickles_or_evaluates() -> None:
    found = {path: faults(tree) for path, tree in sources()}
    allowed = found.pop(CONVERTER)
    assert [line.split(maxsplit=1)[1] for line in allowed] == ["torch.load"]
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_libraries_open_no_folder_but_one_that_was_checked() -> None:
    opening = {"from_pretrained", "from_single_file"}
    found = {
        path
        for path, tree in sources()
        if any(isinstance(node, ast.Attribute) and node.attr in opening for node in ast.walk(tree))
    }
    assert found == {f"checkpoints/{name}.py" for name in ("published", "single_file", "tokenizer")}


def test_the_check_sees_what_it_looks_for() -> None:
    for text in (
        "import pickle", "from pickle import loads", "import torch\ntorch.load(x)", "from torch import load",
        "eval('1')", "f = exec", "yaml.load(x, Loader=yaml.Loader)", "archive.extractall()", "shutil.unpack_archive(x)",
        "np.load(x, allow_pickle=True)", "subprocess.run(x, shell=True)", "g(trust_remote_code=flag)", "import runpy",
        "torch.hub.load('x')", "class U(other.Unpickler): pass", "load(x, weights_only=False)",
    ):  # fmt: skip
        assert faults(ast.parse(text)), text
    assert faults(ast.parse("import pickletools\nyaml.safe_load(x)\nmodel.eval()\njson.load(x)\nre.compile('x')")) == []
