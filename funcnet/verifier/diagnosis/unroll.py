"""Loops written out, so that edits reach into their bodies, and are the same in every step.

Of a program with short scans there are two: the *full* one, which has every step and is run, and the *folded*
one, in which a body stands once, with the values of its middle step: a formula as its author sees it. Slips
are looked for in the folded one; what is changed there is changed in every step of the full one.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from funcnet.verifier.trace import Equation, Program

__all__ = ["STEPS", "Unrolled", "unrolled"]

STEPS = 6  # of a loop that is written out; a longer one is diagnosed at another length, where it runs there


class Step(NamedTuple):
    """All values of the full program, by the numbers of the folded one, as one step sees them."""

    known: Any  # all values of the full program
    step: Mapping[int, int]
    middle: Sequence[int]

    def __getitem__(self, v: Any) -> Any:
        return self.known[self.step.get(v, self.middle[v])]


@dataclasses.dataclass(frozen=True)
class Unrolled:
    """A program with its short loops written out.

    Attributes:
        full: with every step.
        folded: with every body once.
        middle: of each value of the folded program, that of the full one; in a loop, in the middle step.
        steps: by length of the loop and number of the step: where that is another value.
        places: of each folded equation those of the full program that it stands for, each with its step.
        body: the folded equations that stand in a body, and are no part of how a loop is written out.
        carried: those of them that take over what the step before gives.
        starts: of each equation of the program as it was: the first folded one.
    """

    full: Program
    folded: Program
    middle: Sequence[int]
    steps: Mapping[Any, Mapping[int, int]]
    places: Sequence[Sequence[tuple[int, Any]]]
    body: frozenset[int]
    carried: frozenset[int]
    starts: Sequence[int]

    @functools.cached_property
    def handed_on(self) -> tuple[int, ...]:
        """Of the full program: what every step takes over from the one before."""
        return tuple(self.full.equations[at].outputs[0] for k in self.carried for at, _ in self.places[k])

    def is_made(self, k: int) -> bool:
        """Whether a folded equation is part of how a loop is written out."""
        return self.places[k][0][1] is not None and k not in self.body

    def fold(self, values: Sequence[Any]) -> list[Any]:
        """The values of the folded program among those of the full one."""
        return [values[v] for v in self.middle]

    def changed(self, changed: Mapping[int, Any]) -> dict[int, Any]:
        """Changes of folded equations, made in every step."""

        def within(f: Any, step: Any) -> Any:
            here = self.steps.get(step, {})
            return lambda operands, known, *c: f(operands, Step(known, here, self.middle), *c)

        return {place: within(f, step) for k, f in changed.items() for place, step in self.places[k]}

    def reached(self, values: set[int]) -> set[int]:
        """The folded values of which some step is among values of the full program."""
        found = {v for v, there in enumerate(self.middle) if there in values}
        return found.union(*({v for v, at in step.items() if at in values} for step in self.steps.values()))


def unrolled(program: Program, most: int = STEPS) -> Unrolled | None:
    """A program with its scans of at most so many steps written out; None if it has none."""
    short = lambda eqn: eqn.name == "scan" and 0 < eqn.params["length"] <= most
    if not any(map(short, program.equations)):
        return None
    writer, starts = _Writer(program), list[int]()
    for eqn in program.equations:
        starts.append(len(writer.folded.equations))
        writer.loop(eqn) if short(eqn) else writer.alone(eqn)
    middle = [writer.middle[v] for v in range(len(writer.folded.avals))]
    full, folded = (half.program(program) for half in (writer.full, writer.folded))
    body, carried = frozenset(writer.body), frozenset(writer.carried)
    return Unrolled(full, folded, middle, writer.steps, writer.places, body, carried, starts)


class _Half:
    """One of the two programs as it is written; `at` is what stands in it for a value of the program."""

    def __init__(self, program: Program):
        self.equations, self.avals = list[Equation](), list[Any](program.avals[: program.inputs])
        self.at: dict[int, Any] = dict(enumerate(range(program.inputs)))

    def add(self, eqn: Equation, avals: Sequence[Any], known: dict[int, Any]) -> None:
        """An equation, whose inputs are `known`, and then its outputs too."""
        outputs = tuple(range(len(self.avals), len(self.avals) + len(avals)))
        inputs = tuple(known[v] if isinstance(v, int) else v for v in eqn.inputs)
        self.equations.append(eqn._replace(inputs=inputs, outputs=outputs))
        self.avals.extend(avals)
        known.update(zip(eqn.outputs, outputs, strict=True))

    def inline(self, step: Program, operands: Sequence[Any]) -> dict[int, Any]:
        """A whole program; what stands for its values."""
        known: dict[int, Any] = dict(enumerate(operands))
        for eqn in step.equations:
            self.add(eqn, [step.avals[v] for v in eqn.outputs], known)
        return known

    def program(self, program: Program) -> Program:
        """What was written, for `program`."""
        outputs = tuple(self.at[v] for v in program.outputs)
        return Program(tuple(self.equations), program.inputs, outputs, tuple(self.avals))


class _Writer:
    def __init__(self, program: Program):
        self.source, self.full, self.folded = program, _Half(program), _Half(program)
        self.middle = dict(enumerate(range(program.inputs)))
        self.steps, self.places = dict[Any, dict[int, int]](), list[list[tuple[int, Any]]]()
        self.body, self.carried = set[int](), set[int]()

    def alone(self, eqn: Equation) -> None:
        """An equation outside of short loops."""
        self.places.append([(len(self.full.equations), None)])
        for half in (self.full, self.folded):
            half.add(eqn, [self.source.avals[v] for v in eqn.outputs], half.at)
        self.middle.update((self.folded.at[v], self.full.at[v]) for v in eqn.outputs)

    def loop(self, eqn: Equation) -> None:
        """A scan: in the folded program its middle step, in the full one every step."""
        (fixed, carry), length, first = eqn.parts, eqn.params["length"], len(self.folded.equations)
        avals = [self.source.avals[v] if isinstance(v, int) else v for v in eqn.inputs]
        state, mine = (
            [half.at[v] if isinstance(v, int) else v for v in eqn.inputs] for half in (self.full, self.folded)
        )
        single = _step(eqn, avals, length // 2)
        once, before = self.folded.inline(single, mine), 2 * (len(avals) - fixed - carry)
        self.places += [[] for _ in single.equations]
        for k, inner in enumerate(eqn.inner[0].equations, first + before):
            self.body.add(k)
            if inner.primitive is None and inner.inputs[0] in range(fixed, fixed + carry):
                self.carried.add(k)
        stacked = dict[int, list[Any]]()
        for t in reversed(range(length)) if eqn.params["reverse"] else range(length):
            start = len(self.full.equations)
            known = self.full.inline(_step(eqn, avals, t), state)
            for m in range(len(single.equations)):
                self.places[first + m].append((start + m, (length, t)))
            pairs = {once[v]: at for v, at in known.items() if v >= len(avals)}
            self.steps.setdefault((length, t), {}).update(pairs)
            if t == length // 2:
                self.middle.update(pairs)
            results = [known[v] for v in single.outputs]
            state[fixed : fixed + carry], stacked[t] = results[:carry], results[carry:]
        last = zip(eqn.outputs[:carry], state[fixed : fixed + carry], single.outputs[:carry], strict=True)
        for v, now, out in last:
            self.full.at[v], self.folded.at[v] = now, once[out]
        for j, v in enumerate(eqn.outputs[carry:]):
            every = [stacked[t][j] for t in range(length)]
            self.places.append([(len(self.full.equations), None)])
            for half, parts in ((self.full, every), (self.folded, [once[single.outputs[carry + j]]])):
                names = tuple(range(-len(parts), 0))
                half.at.update(zip(names, parts, strict=True))
                together = Equation(jax.lax.concatenate_p, names, (v,), {"dimension": 0}, eqn.line)
                half.add(together, [self.source.avals[v]], half.at)
            self.middle[self.folded.at[v]] = self.full.at[v]


def _step(eqn: Equation, avals: Sequence[Any], t: int) -> Program:
    """One step of a scan, of the scan's own operands: what it takes of them, its body, what is stacked."""
    ((body,), (_, carry)), given = (eqn.inner, eqn.parts), len(avals)
    equations, made = list[Equation](), [*avals, *body.avals[given:]]

    def add(primitive: Any, v: int, shape: tuple[int, ...], params: dict[str, Any]) -> int:
        made.append(jax.ShapeDtypeStruct(shape, made[v].dtype))
        equations.append(Equation(primitive, (v,), (len(made) - 1,), params, eqn.line))
        return len(made) - 1

    taken = dict[Any, int]()
    for v in range(sum(eqn.parts), given):
        shape = made[v].shape
        limits = {"start_indices": (t, *[0] * len(shape[1:])), "limit_indices": (t + 1, *shape[1:])}
        row = add(jax.lax.slice_p, v, (1, *shape[1:]), {**limits, "strides": None})
        taken[v] = add(jax.lax.squeeze_p, row, shape[1:], {"dimensions": (0,)})
    for inner in body.equations:
        inputs = tuple(taken.get(v, v) if isinstance(v, int) else v for v in inner.inputs)
        equations.append(inner._replace(inputs=inputs))
    outputs = [*body.outputs[:carry]]
    for v in body.outputs[carry:]:
        shape = made[v].shape
        params = {
            "shape": (1, *shape),
            "broadcast_dimensions": tuple(range(1, len(shape) + 1)),
            "sharding": None,
        }
        outputs.append(add(jax.lax.broadcast_in_dim_p, v, (1, *shape), params))
    return Program(tuple(equations), given, tuple(outputs), tuple(made))
