"""Instructions in the loops of the CUDA kernels, counted in their machine code.

    cuobjdump -sass FILE.cubin | python -m benchmarks.measure.sass [NAME]

One row for each loop that multiplies matrices, and for each loop inside those, in kernels whose
mangled name contains NAME: the instructions of all its branches, without those of the loops inside.
``spills`` are loads and stores of local memory.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Set
from typing import NamedTuple, TextIO

INSTRUCTION = re.compile(r"/\*([0-9a-f]+)\*/\s+(@!?U?P\w+ )?([A-Z0-9_.]+)(.*?);")

#: Column -> beginnings of the names of its instructions.
COLUMNS = {
    "mma": ("HMMA", "IMMA"),
    "ldmatrix": ("LDSM",),
    "shared": ("LDS", "STS"),
    "copies": ("LDGSTS",),
    "exp": ("MUFU.EX2",),
    "barriers": ("BAR",),
    "spills": ("LDL", "STL"),
}


class Instruction(NamedTuple):
    name: str
    successors: tuple[int, ...]  # addresses


class Loop(NamedTuple):
    first: int
    body: Set[int]  # addresses


def read_kernels(text: TextIO) -> dict[str, dict[int, Instruction]]:
    """The instructions of each function by their addresses, by its mangled name."""
    kernels: dict[str, dict[int, Instruction]] = {}
    for line in text:
        if "Function :" in line:
            kernel = kernels.setdefault(line.split(":")[1].strip(), {})
        elif match := INSTRUCTION.search(line):
            place, condition, name, operands = match.groups()
            address = int(place, 16)
            ends = condition is None and name.split(".")[0] in {"EXIT", "RET", "BRA"}
            successors: tuple[int, ...] = () if ends and name != "BRA.DIV" else (address + 16,)
            to = re.search(r"0x([0-9a-f]+)\s*$", operands)
            if name.startswith("BRA") and to is not None:
                successors += (int(to.group(1), 16),)
            kernel[address] = Instruction(name, successors)
    return kernels


def reached(start: int, edges: Mapping[int, Set[int]], without: int) -> set[int]:
    """Addresses on the ways from ``start`` that do not pass ``without``."""
    found, waiting = {without}, [start]
    while waiting:
        address = waiting.pop()
        if address not in found:
            found.add(address)
            waiting += edges.get(address, set())
    return found - {without}


def loops_of(kernel: Mapping[int, Instruction]) -> list[Loop]:
    """The natural loops. Code that lies behind the kernel's end and returns is none."""
    after: dict[int, set[int]] = {}
    before: dict[int, set[int]] = {}
    for address, instruction in kernel.items():
        for successor in instruction.successors:
            if successor in kernel:
                after.setdefault(address, set()).add(successor)
                before.setdefault(successor, set()).add(address)
    bodies: dict[int, set[int]] = {}
    for address, instruction in kernel.items():
        for first in instruction.successors:
            if first < address and address not in reached(0, after, without=first):
                body = reached(address, before, without=first) | {first}
                bodies.setdefault(first, set()).update(body)
    return [Loop(first, body) for first, body in sorted(bodies.items())]


def column_of(name: str) -> str | None:
    for column, beginnings in COLUMNS.items():
        # LDSM begins like LDS.
        if any(name == x or name.startswith(x + ".") for x in beginnings):
            return column
    return None


def table(kernels: Mapping[str, Mapping[int, Instruction]], name: str = "") -> str:
    columns = ["all", *COLUMNS]
    rows = [["kernel", "loop", *columns], ["---", "---", *["---:"] * len(columns)]]
    for kernel in (x for x in kernels if name in x):
        instructions = kernels[kernel]
        loops = loops_of(instructions)
        mma = {a for a, instruction in instructions.items() if column_of(instruction.name) == "mma"}
        outer = [loop for loop in loops if loop.body & mma]
        for loop in (x for x in loops if any(x.body <= y.body for y in outer)):
            own = set(loop.body).difference(*(x.body for x in loops if x.body < loop.body))
            names = [instructions[a].name for a in own if instructions[a].name != "NOP"]
            counts = Counter(map(column_of, names))
            figures = [len(names), *(counts[column] for column in COLUMNS)]
            rows.append([kernel, f"{loop.first:#x}", *map(str, figures)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(table(read_kernels(sys.stdin), *sys.argv[1:2]))
