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
    address: int
    name: str
    target: int | None  # of a conditional branch


class Loop(NamedTuple):
    first: int
    last: int


def read_kernels(text: TextIO) -> dict[str, list[Instruction]]:
    """The instructions of each function, by its mangled name."""
    kernels: dict[str, list[Instruction]] = {}
    for line in text:
        if "Function :" in line:
            instructions = kernels.setdefault(line.split(":")[1].strip(), [])
        elif match := INSTRUCTION.search(line):
            address, condition, name, operands = match.groups()
            # Unconditional branches backwards return from code that lies behind the kernel's end.
            is_branch = name.startswith("BRA") and condition is not None
            to = re.search(r"0x([0-9a-f]+)\s*$", operands) if is_branch else None
            instructions.append(
                Instruction(int(address, 16), name, int(to.group(1), 16) if to else None)
            )
    return kernels


def loops_of(instructions: list[Instruction]) -> list[Loop]:
    """From each target of a branch backwards to the last such branch."""
    ends: dict[int, int] = {}
    for address, _, target in instructions:
        if target is not None and target < address:
            ends[target] = max(ends.get(target, 0), address)
    return [Loop(first, last) for first, last in sorted(ends.items())]


def column_of(name: str) -> str | None:
    for column, beginnings in COLUMNS.items():
        # LDSM begins like LDS.
        if any(name == b or name.startswith(b + ".") for b in beginnings):
            return column
    return None


def count(instructions: list[Instruction], loop: Loop, loops: list[Loop]) -> Counter[str]:
    """Instructions of a loop without those of the loops inside it, by column and in all."""
    inside = [x for x in loops if x != loop and loop.first <= x.first and x.last <= loop.last]
    counts: Counter[str] = Counter()
    for address, name, _ in instructions:
        if not loop.first <= address <= loop.last or name == "NOP":
            continue
        if any(x.first <= address <= x.last for x in inside):
            continue
        counts["all"] += 1
        column = column_of(name)
        if column is not None:
            counts[column] += 1
    return counts


def table(kernels: dict[str, list[Instruction]], name: str = "") -> str:
    columns = ["all", *COLUMNS]
    rows = [["kernel", "loop", *columns], ["---", "---", *["---:"] * len(columns)]]
    for kernel, instructions in kernels.items():
        if name not in kernel:
            continue
        loops = loops_of(instructions)
        multiply = [x for x in loops if count(instructions, x, [x])["mma"] > 0]
        for loop in loops:
            if any(x.first <= loop.first and loop.last <= x.last for x in multiply):
                counts = count(instructions, loop, loops)
                figures = [str(counts[column]) for column in columns]
                rows.append([kernel, f"{loop.first:#x}-{loop.last:#x}", *figures])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(table(read_kernels(sys.stdin), *sys.argv[1:2]))
