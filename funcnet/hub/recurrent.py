"""The weights of one lstm, gru or rnn in the layouts of torch, Keras, ONNX and Haiku.

    params = recurrent.from_arrays("gru", "keras", {"kernel": ..., "recurrent_kernel": ..., "bias": ...})

One table says which names a layout has, in which order its gates are, and what it does with biases. Ours are
w [d, k], u [m, k], one bias b [k], for gru c [m], which lies inside r ⊙ (·), and for an lstm that projects r
[m, p]; gates are i f g o, or r z n. What is another function is refused rather than converted: a gru of ONNX
and Keras resets after the product (linear_before_reset=1, reset_after=True) where `reset` is "after", and one
of Haiku before it.
Arrays are NumPy's, of one direction of one layer.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from funcnet.errors import ShapeError, StructureError
from funcnet.ops import _check

__all__ = ["from_arrays", "to_arrays"]

GATES = {"lstm": "ifgo", "gru": "rzn", "rnn": "h"}


class Layout(NamedTuple):
    """How a library lays out the weights of a cell.

    Attributes:
        gates: ours in its order.
        w: the name of W; that of W and U, one below the other, where `u` is None.
        u: the name of U.
        biases: the names of its biases, those beside W first: two, one of two rows or parts, or one.
        parts: how many biases there are: 2, of which one is beside U, or 1.
        transposed: W is [k, d].
        directions: every array has a first axis of directions.
        negated: the gate whose activation is 1 − ours.
        forget: what the forward pass adds to the bias of the gate f.
        r: the name of an lstm's projection, [p, m], where there is such.
    """

    gates: str
    w: str
    u: str | None
    biases: tuple[str, ...]
    parts: int
    transposed: bool = False
    directions: bool = False
    negated: str = ""
    forget: float = 0.0
    r: str | None = None


_TORCH = ("weight_ih", "weight_hh", ("bias_ih", "bias_hh"), 2, True)
_KERAS = ("kernel", "recurrent_kernel", ("bias",))
_ONNX = ("W", "R", ("B",), 2, True, True)
LAYOUTS = {
    ("lstm", "torch", "after"): Layout("ifgo", *_TORCH, r="weight_hr"),
    ("lstm", "keras", "after"): Layout("ifgo", *_KERAS, 1),
    ("lstm", "onnx", "after"): Layout("iofg", *_ONNX),
    ("lstm", "haiku", "after"): Layout("igfo", "w", None, ("b",), 1, forget=1.0),
    ("gru", "torch", "after"): Layout("rzn", *_TORCH),
    ("gru", "keras", "after"): Layout("zrn", *_KERAS, 2),
    ("gru", "keras", "before"): Layout("zrn", *_KERAS, 1),
    ("gru", "onnx", "after"): Layout("zrn", *_ONNX),
    ("gru", "onnx", "before"): Layout("zrn", *_ONNX),
    ("gru", "haiku", "before"): Layout("zrn", "w_i", "w_h", ("b",), 1, negated="z"),
    ("rnn", "torch", "after"): Layout("h", *_TORCH),
    ("rnn", "keras", "after"): Layout("h", *_KERAS, 1),
    ("rnn", "onnx", "after"): Layout("h", *_ONNX),
}
Cell = Literal["lstm", "gru", "rnn"]
Library = Literal["torch", "keras", "onnx", "haiku"]


def from_arrays(
    cell: Cell, library: Library, arrays: Mapping[str, Any], *, reset: str = "after", direction: int = 0
) -> dict[str, np.ndarray]:
    """Params of `cell` from the arrays of a library, by its names; two biases are added up where that is one.

    Args:
        cell: "lstm", "gru" or "rnn".
        library: "torch" (weight_ih, weight_hh, bias_ih, bias_hh, without "_l0"; of an lstm with proj_size
            weight_hr), "keras" (kernel, recurrent_kernel, bias), "onnx" (W, R, B) or "haiku" (lstm: w, b;
            gru: w_i, w_h, b).
        arrays: what numpy.asarray takes; the biases may be absent.
        reset: of gru: what the weights were trained with, and are to be applied with.
        direction: which of onnx's, that have a first axis of them.

    Raises:
        StructureError: a name is missing, or there is no such layout.
        ShapeError: an array does not hold the gates of the cell.

    >>> m, ones = 2, np.ones((8, 2), np.float32)
    >>> arrays = {"weight_ih": ones, "weight_hh": ones, "bias_ih": ones[:, 0], "bias_hh": ones[:, 0]}
    >>> from_arrays("lstm", "torch", arrays)["b"].tolist()
    [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    """
    where = "hub.recurrent.from_arrays"
    layout = _layout(where, cell, library, reset)
    names = [name for name in (layout.w, layout.u) if name is not None]
    has_bias = any(arrays.get(name) is not None for name in layout.biases)
    found = {}
    for name in [*names, *(layout.biases if has_bias else ())]:
        if arrays.get(name) is None:
            raise StructureError(
                f'{where}: arrays have no "{name}".',
                path=f'arrays["{name}"]',
                expected=", ".join(f'"{n}"' for n in (*names, *layout.biases)) + " (biases may be absent)",
                actual="keys: " + (", ".join(f'"{key}"' for key in arrays) or "none"),
            )
        array = np.asarray(arrays[name])
        found[name] = array[direction] if layout.directions else array
    k = len(layout.gates)
    w = found[layout.w].T if layout.transposed else found[layout.w]
    if layout.u is None:
        m = w.shape[-1] // k
        w, u = w[: len(w) - m], w[len(w) - m :]
    else:
        u = found[layout.u].T if layout.transposed else found[layout.u]
    r = None if layout.r is None or arrays.get(layout.r) is None else np.asarray(arrays[layout.r]).T
    m = u.shape[0] if r is None else r.shape[0]
    fits = u.ndim == w.ndim == 2 and u.shape[1] == w.shape[1] == k * m
    if not fits or (r is not None and r.shape != (m, u.shape[0])):
        raise ShapeError(
            f"{where}: the arrays of {library} do not hold {k} gates of {m}.",
            path="arrays",
            expected=f"W of {k * m} columns, and U of {m} rows and {k * m} columns, once laid out as ours",
            actual=f"W {list(w.shape)}, U {list(u.shape)}"
            + (f", R {list(r.shape)}" if r is not None else ""),
        )
    own = lambda v: _ordered(v, layout.gates, GATES[cell], layout.negated)
    params = {"w": own(w), "u": own(u)} | ({} if r is None else {"r": r.copy()})
    if has_bias:
        b = np.concatenate([np.reshape(found[name], -1) for name in layout.biases])
        parts = [own(part) for part in b.reshape(layout.parts, k * m)]
        params["b"] = parts[0].copy()
        if layout.parts == 2:
            added = parts[1].copy()
            if cell == "gru":
                params["c"], added[2 * m :] = parts[1][2 * m :].copy(), 0
            params["b"] = params["b"] + added
        if layout.forget:
            params["b"][m : 2 * m] += layout.forget
    return params


def to_arrays(
    cell: Cell, library: Library, params: Mapping[str, Any], *, reset: str = "after"
) -> dict[str, np.ndarray]:
    """The arrays of a library from params: the other way round; a second bias is 0 but for gru's c.

    Args:
        cell: "lstm", "gru" or "rnn".
        library: "torch", "keras", "onnx" (of one direction) or "haiku".
        params: of the cell.
        reset: of gru.

    Raises:
        StructureError: there is no such layout, or params lack a part, or have a projection that it lacks.
    """
    where = "hub.recurrent.to_arrays"
    layout = _layout(where, cell, library, reset)
    _check.tree(where, params, "w", "u")
    given = {name: np.asarray(v) for name, v in params.items() if v is not None}
    k = len(layout.gates)
    m = given["u"].shape[1] // k
    if "r" in given and layout.r is None:
        raise StructureError(
            f"{where}: {library} has no {cell} with a projection.",
            path='params["r"]',
            expected='params without "r"',
            actual=f'params["r"]: {list(given["r"].shape)}',
        )
    theirs = lambda v: _ordered(v, GATES[cell], layout.gates, layout.negated)
    w, u = theirs(given["w"]), theirs(given["u"])
    arrays = {layout.w: np.concatenate([w, u])} if layout.u is None else {layout.w: w, layout.u: u}
    if layout.r is not None and "r" in given:
        arrays[layout.r] = given["r"]
    if layout.transposed:
        arrays = {name: v.T for name, v in arrays.items()}
    if "b" in given or "c" in given:
        b = given.get("b", np.zeros(k * m, w.dtype)).copy()
        second = np.zeros_like(b)
        if layout.forget:
            b[m : 2 * m] -= layout.forget
        if "c" in given and layout.parts == 2:
            second[2 * m :] = given["c"]
        elif "c" in given:  # reset before: a bias like the other
            b[2 * m :] += given["c"]
        parts = [theirs(b), theirs(second)][: layout.parts]
        if len(layout.biases) == 2:
            arrays |= dict(zip(layout.biases, parts, strict=True))
        else:
            rows = np.stack(parts) if library == "keras" and layout.parts == 2 else np.concatenate(parts)
            arrays[layout.biases[0]] = rows
    return {name: v[None] if layout.directions else v for name, v in arrays.items()}


def _ordered(v: np.ndarray, given: str, wanted: str, negated: str) -> np.ndarray:
    """The gates side by side along the last axis, from one order to another."""
    gates = dict(zip(given, np.split(v, len(given), -1), strict=True))
    return np.concatenate([-gates[g] if g == negated else gates[g] for g in wanted], -1)


def _layout(where: str, cell: Any, library: Any, reset: Any) -> Layout:
    if (cell, library, reset) in LAYOUTS:
        return LAYOUTS[cell, library, reset]
    resets = [r for c, lib, r in LAYOUTS if (c, lib) == (cell, library)]
    raise StructureError(
        f"{where}: there is no {cell!r} of {library!r}" + (f" with reset={reset!r}." if resets else "."),
        path="library" if not resets else "reset",
        expected=f"reset={resets[0]!r}"
        if resets
        else ", ".join(sorted(GATES)) + " of torch, keras or onnx, lstm and gru of haiku",
        actual=f"cell = {cell!r}, library = {library!r}, reset = {reset!r}",
        hint="another reset is another function of the same weights." if resets else None,
    )
