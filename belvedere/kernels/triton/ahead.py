"""Compile the kernels for GPUs that are not here: ``python -m belvedere.kernels.triton.ahead [--json FILE]``.

The launches are those that each file's ``production`` makes at the sizes of the published networks, so what is compiled
is what runs. Registers, stack (where registers spill to) and shared memory are the compiler's own report; instructions
are counted in what it wrote. Needs no GPU.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from belvedere.kernels import triton as ours
from belvedere.kernels.triton.launch import Launch, noting

TARGETS = {"sm_80": 80, "sm_90a": 90, "sm_100a": 100, "sm_120a": 120}
SHARED = {"sm_80": 166_912, "sm_90a": 232_448, "sm_100a": 232_448, "sm_120a": 101_376}
"""Bytes of shared memory a block may have (CUDA programming guide, table of compute capabilities)."""
ONLY_ATTENTION = ("sm_120a",)
"""Targets for which no other kernels are compiled: theirs are far from the limits, and take twice as long."""
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64"}
OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")
ALIGNED = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of one kernel on one target."""

    name: str
    kernel: str
    target: str
    registers: int
    stack: int
    """Bytes a thread keeps outside registers: more than 0 when they spill."""
    shared: int
    """Bytes of shared memory of a block."""
    warps: int
    moved: float | None
    """Bytes of the tensors that an instruction of a warp stands for, where no instruction is run twice."""


def launches(target: str) -> Iterator[tuple[str, Launch]]:
    """Yield every kernel launch of every file's ``production`` on a target, each kernel and set of constants once."""
    seen = set()
    for module in (ours.attention, ours.attention_split) if target in ONLY_ATTENTION else ours.MODULES:
        for name, call in module.production():
            with noting(TARGETS[target]) as noted:
                call()
            for one in noted:
                key = (_title(one.kernel), _source(one).hash(), str(_options(one)))
                if key not in seen:
                    seen.add(key)
                    yield name, one


def _title(kernel: Any) -> str:
    """Return the file and the name of a kernel."""
    return f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__.strip('_').removesuffix('_kernel')}"


def _options(one: Launch) -> dict[str, Any]:
    return {name: value for name, value in one.named.items() if name in OPTIONS}


def _source(one: Launch) -> ASTSource:
    """Return the kernel with the types, constants and alignment that Triton's own launcher would give it."""
    signature: dict[str, str] = {}
    constants = {name: value for name, value in one.named.items() if name not in OPTIONS}
    attributes = {}
    positional = iter(one.arguments)
    for place, name in enumerate(one.kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        value = next(positional)
        if value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = _type(value)
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(place,)] = ALIGNED
    return ASTSource(one.kernel, signature, constants, attributes)


def _type(value: Tensor | float) -> str:
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 2**31 else "i64"


def compile_one(name: str, one: Launch, target: str) -> Compiled:
    """Compile one launch for one target and read what the compiler says of it."""
    options = {"num_warps": 4} | _options(one)
    made = triton.compile(_source(one), target=GPUTarget("cuda", TARGETS[target], 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        said = _said_by(triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        written = _said_by(triton.knobs.nvidia.nvdisasm.path, "-c", file.name)
    line = next(line for line in said.splitlines() if "REG:" in line)
    figures = {key: int(value) for key, value in (part.split(":")[:2] for part in line.split() if ":" in part)}
    stack = figures["STACK"] + figures["LOCAL"]
    shared = max(made.metadata.shared, figures["SHARED"])
    warps, moved = options["num_warps"], None
    if (instructions := _run_once(written)) is not None:
        size = sum(x.nbytes for x in one.arguments if isinstance(x, Tensor))
        moved = round(size / (math.prod(one.grid) * warps * instructions), 1)
    return Compiled(name, _title(one.kernel), target, figures["REG"], stack, shared, warps, moved)


def _said_by(tool: str, *arguments: str) -> str:
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def _run_once(assembly: str) -> int | None:
    """Return how many instructions a kernel has, or None where one branches back."""
    places: dict[str, int] = {}
    instructions: list[str] = []
    for line in assembly.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line.strip()):
            places[label[1]] = len(instructions)
        elif (found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*);", line)) and not found[1].startswith("NOP"):
            instructions.append(found[1])
    for i, instruction in enumerate(instructions):
        target = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction)
        if target and target[1] in places and places[target[1]] < i:
            return None
    return len(instructions)


def compile_all(targets: tuple[str, ...] = tuple(TARGETS), workers: int = 2) -> Iterator[Compiled]:
    """Compile everything for the targets; most of the time is in the assembler, a process of its own."""
    work = [(name, one, target) for target in targets for name, one in launches(target)]
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda item: compile_one(*item), work)


def wrong_with(one: Compiled) -> str | None:
    """Return what keeps a kernel from running well on its target, or None."""
    if one.stack:
        return f"{one.name} ({one.kernel}) on {one.target} spills {one.stack} bytes a thread"
    if one.shared > SHARED[one.target]:
        return f"{one.name} ({one.kernel}) on {one.target} wants {one.shared} bytes of shared memory"
    return None


def table(rows: list[Compiled]) -> str:
    """Return the table of docs/kernels.md: of each file's kernels the most that any launch takes on each target."""
    targets = dict.fromkeys(one.target for one in rows)
    lines = [f"| kernel | {' | '.join(targets)} |", "|---|" + "---|" * len(targets)]
    for kernel in dict.fromkeys(one.kernel for one in rows):
        cells = (_most([one for one in rows if one.kernel == kernel and one.target == target]) for target in targets)
        lines.append(f"| {kernel} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _most(rows: list[Compiled]) -> str:
    """Return the most registers and shared memory of compiled launches, nothing where there are none."""
    if not rows:
        return ""
    return f"{max(one.registers for one in rows)}, {max(one.shared for one in rows) / 1024:.1f} KB"


def moved_table(rows: list[Compiled], target: str = "sm_90a") -> str:
    """Return the other table of docs/kernels.md: bytes that an instruction of a warp stands for, on one target."""
    lines = ["| launch | bytes |", "|---|---|"]
    lines += [f"| {one.name} | {one.moved} |" for one in rows if one.target == target and one.moved is not None]
    return "\n".join(lines)


def main() -> int:
    """Compile, print a line each; exit code 1 when a kernel spills or does not fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--table", action="store_true", help="print the tables of docs/kernels.md last")
    parser.add_argument("--target", choices=tuple(TARGETS), action="append", help="only this target; may be repeated")
    options = parser.parse_args()
    rows = []
    for one in compile_all(tuple(options.target or TARGETS)):
        rows.append(one)
        print(f"{one.name:44} {one.target:8} {one.registers:4} registers {one.stack:5} stack {one.shared:7} shared")
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in rows], indent=1) + "\n")
    if options.table:
        print(table(rows), moved_table(rows), sep="\n\n")
    faults = [fault for one in rows if (fault := wrong_with(one))]
    print(*faults, sep="\n", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
