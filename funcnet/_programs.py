"""What is read off a traced program: its inner programs, the parts of a loop, and where it was written."""

import linecache
import os
from typing import Any

import jax
import jaxtyping
import numpy as np

__all__ = ["CALLS", "OWN", "frames", "line", "origin", "parts_of_scan", "place"]

# Primitives that run one inner program over their own inputs, and where it is.
CALLS = {
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
}
OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep
_FOLDERS = tuple(
    os.path.dirname(os.path.abspath(file)) + os.sep for file in (jax.__file__, jaxtyping.__file__)
)


def parts_of_scan(eqn: Any) -> tuple[int, int]:
    """Of a scan: how many of its inputs are constants, and how many are carried.

    Each version of JAX calls them otherwise; what has one axis more outside of the body is neither.
    """
    body = eqn.params["jaxpr"]
    body = getattr(body, "jaxpr", body)
    ranks = lambda variables: [np.ndim(var.aval) for var in variables]
    same = lambda outer, inner: sum(map(int.__eq__, ranks(outer), ranks(inner)))
    carried = same(eqn.outvars, body.outvars)
    return same(eqn.invars, body.invars) - carried, carried


def frames(eqn: Any) -> list[Any]:
    """Where an equation was written, the innermost call first; JAX's own lines are left out."""
    found = eqn.source_info.traceback.frames if eqn.source_info.traceback is not None else ()
    return [frame for frame in found if not frame.file_name.startswith((*_FOLDERS, "<@"))]


def line(frame: Any) -> tuple[str, str]:
    """``model.py:41``, and the text of that line."""
    near = frame.file_name.startswith(os.getcwd() + os.sep)
    file = os.path.relpath(frame.file_name) if near else frame.file_name
    return f"{file}:{frame.line_num}", linecache.getline(frame.file_name, frame.line_num).strip()[:100]


def place(eqn: Any) -> str:
    """The line that made an equation, ``model.py:41``: the user's own, where there is one."""
    frame = origin(eqn)
    return "a line unknown" if frame is None else line(frame)[0]


def origin(eqn: Any) -> Any:
    """The call that made an equation: the innermost of the user's own, else of funcnet's; None: not known."""
    written = frames(eqn)
    return next(
        (frame for frame in written if not frame.file_name.startswith(OWN)), next(iter(written), None)
    )
