"""cuDNN's attention, where it computes what is asked for and this process has it.

Tracing it elsewhere raises, so that it is no branch that every program could carry: a program traced in a
process without an NVIDIA GPU has the blocks only, on every platform. Limits as JAX 0.10 to 0.12 check them
(jax.nn.dot_product_attention): 16-bit floats, head widths that are multiples of 8 up to 128, or 256 from
compute capability 9.0; no softcap, no sinks, no offset; a mask or a bias would put it on its slow path.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from funcnet.ops._shape import known
from funcnet.ops.attention._blocks import Arrays, Form

__all__ = ["applies", "cudnn", "either"]


def applies(
    form: Form, arrays: Arrays, q: Array, k: Array, v: Array, bias: Array | None, sinks: Array | None
) -> bool:
    """Whether cuDNN computes this call, and this process can trace it."""
    if bias is not None or sinks is not None or any(x is not None for x in arrays):
        return False
    if form.softcap is not None or form.rate or form.offset or form.block is not None:
        return False
    if form.right not in (None, 0) or (form.left is not None and form.right is None):
        return False
    width, dtypes = q.shape[-1], {x.dtype for x in (q, k, v)}
    if len(dtypes) > 1 or q.dtype not in (jnp.bfloat16, jnp.float16) or width % 8 or v.shape[-1] != width:
        return False
    if not (known(*q.shape, *k.shape) and q.size and k.size):
        return False
    capability = _capability()
    return capability >= 8.0 and width <= (256 if capability >= 9.0 else 128)


def _capability() -> float:
    """The lowest compute capability of the NVIDIA GPUs of this process; 0 without one."""
    found = [
        float(device.compute_capability)
        for device in jax.local_devices()
        if device.platform == "gpu"
        and str(getattr(device, "compute_capability", "")).replace(".", "").isdigit()
    ]  # AMD's are called gfx...
    return min(found, default=0.0)


def cudnn(form: Form, q: Array, k: Array, v: Array) -> Array:
    """O of q [*n, t, h, e], k and v [*n, s, h_kv, e]; odd lengths are padded: they have no gradient."""
    (*n, t, h, e), s = q.shape, k.shape[-3]
    batch = math.prod(n)
    q, k, v = (x.reshape(batch, *x.shape[-3:]) for x in (q, k, v))
    lengths: dict[str, Any] = {}
    if t % 2 or s % 2:
        lengths = {
            "query_seq_lengths": jnp.full(batch, t, jnp.int32),
            "key_value_seq_lengths": jnp.full(batch, s, jnp.int32),
        }
        q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    o = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=form.scale,
        is_causal=form.right == 0,
        local_window_size=None if form.left is None else (form.left, 0),
        implementation="cudnn",
        **lengths,
    )
    return o[:, :t].reshape(*n, t, h, e)


def either(blocks: Callable[..., Array], form: Form, q: Array, k: Array, v: Array) -> Array:
    """cuDNN's form when the program is compiled for CUDA, `blocks` for any other platform."""
    return lax.platform_dependent(q, k, v, cuda=lambda *x: cudnn(form, *x), default=blocks)
