"""What a compiled program sends between devices, read off its text (HLO).

Bytes are those that one device sends by the ring algorithms: of an array of A bytes over g devices,
all-gather, reduce-scatter and all-to-all A (g − 1) / g, all-reduce twice that, a permutation A.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from funcnet.errors import DTypeError, describe

__all__ = ["Collective", "collectives"]

_BITS = {"pred": 8} | {f"{kind}{n}": n for kind in "su" for n in (2, 4, 8, 16, 32, 64)}
_BITS |= {"bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b(f8\w+|" + "|".join(_BITS) + r")\[([0-9,]*)\]")
_KINDS = "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all"
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{\s*$")
_LINE = re.compile(r"\s*(?:ROOT )?%?[\w.\-]+ = (.*)$")
_CALLED = re.compile(
    r"(?:to_apply|calls|called_computations|branch_computations|true_computation|false_computation)"
    r"=\{?%?([\w.\-, %]+)\}?"
)


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
        kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute" or
            "ragged-all-to-all".
        devices: of a group.
        times: how often it runs: a loop's body as often as the loop, where the compiler knows.
        sent: bytes that one device sends, all times together.
        name: what JAX calls it.
    """

    kind: str
    devices: int
    times: int
    sent: int
    name: str


def collectives(program: Any) -> list[Collective]:
    """Every collective of a program; nothing runs.

    Args:
        program: ``jax.jit(f).lower(...).compile()``, or its text. A loop whose length the compiler does not
            know counts once, and so does every branch of a condition.

    Raises:
        DTypeError: it has no text.

    >>> text = '''ENTRY main {
    ...   r = f32[4,8] all-reduce(x), replica_groups={{0,1},{2,3}}, to_apply=add
    ... }'''
    >>> collectives(text)[0][:4]
    ('all-reduce', 2, 1, 128)
    """
    text = program if isinstance(program, str) else getattr(program, "as_text", lambda: None)()
    if not isinstance(text, str):
        raise DTypeError(
            "shard.collectives: program is not compiled.",
            path="program",
            expected="program: jax.jit(f).lower(...).compile(), or its text",
            actual=describe(program),
        )
    entry, computations = _computations(text)
    return list(_visit(computations, entry, 1, ()))


def _computations(text: str) -> tuple[str, Mapping[str, list[str]]]:
    """The name of the program's own computation, and the instructions of each, without their names."""
    entry, name, found = "", "", dict[str, list[str]]()
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            entry = name if head[1] else entry
        elif line.startswith("}"):
            name = ""
        elif name and (one := _LINE.match(line)):
            found.setdefault(name, []).append(one[1])
    return entry, found


def _visit(
    computations: Mapping[str, list[str]], name: str, times: int, above: tuple[str, ...]
) -> Iterator[Collective]:
    above = *above, name
    for line in computations.get(name, ()):
        result, call = _cut(line)
        code = call.partition("(")[0].strip()
        kind = code.removesuffix("-start")
        if kind in _KINDS:
            # Of one that is started: (what goes in, what comes out, ...).
            if code != kind and result.startswith("(") and kind != "all-reduce":
                result = _parts(result)[1]
            yield _collective(kind, result, line, times)
        elif code == "while":
            count = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            body = re.search(r"body=%?([\w.\-]+)", line)
            if body:
                yield from _visit(computations, body[1], times * (int(count[1]) if count else 1), above)
        elif code in ("call", "fusion", "conditional", "async-start", "custom-call"):
            for called in _CALLED.findall(line):
                for one in (part.strip().lstrip("%") for part in called.split(",")):
                    if one not in above:
                        yield from _visit(computations, one, times, above)


def _collective(kind: str, result: str, line: str, times: int) -> Collective:
    n, size = _devices(line), _bytes(result)
    share = {
        "all-reduce": 2 * size * (n - 1) // n,
        "reduce-scatter": size * (n - 1),
        "collective-permute": size,
    }.get(kind, size * (n - 1) // n)
    name = re.search(r'op_name="([^"]*)"', line)
    return Collective(kind, n, times, share * times, name[1] if name else "")


def _bytes(types: str) -> int:
    """Of all arrays whose types are in a text."""
    numbers = lambda sizes: math.prod(map(int, filter(None, sizes.split(","))))
    return sum(numbers(sizes) * _BITS.get(kind, 8) // 8 for kind, sizes in _ARRAY.findall(types))


def _devices(line: str) -> int:
    """How many are in a group."""
    if m := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(m[2])
    if m := re.search(r"replica_groups=\{\{([0-9,]*)\}", line):
        return len(m[1].split(","))
    if m := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(.*?\))? \{(.*?)\}", line):
        sizes, n = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", m[1])}, 1
        for name in re.findall(r"'([^']+)'", m[2]):
            part = re.search(rf"'{re.escape(name)}':\(\d+\)(\d+)", m[2])
            n *= int(part[1]) if part else sizes[name]
        return n
    return 2 if "source_target_pairs" in line else 1


def _cut(line: str) -> tuple[str, str]:
    """The type of an instruction's result, and what follows it."""
    if not line.startswith("("):
        result, _, call = line.partition(" ")
        return result, call
    result = _balanced(line)
    return result, line[len(result) :].lstrip()


def _balanced(text: str) -> str:
    """Up to the bracket that closes the first."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if not depth:
            return text[: i + 1]
    return text


def _parts(types: str) -> list[str]:
    """The members of a tuple of types."""
    parts, depth = [""], 0
    for c in types[1:-1]:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and not depth:
            parts.append("")
        else:
            parts[-1] += c
    return parts
