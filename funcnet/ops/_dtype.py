"""Result, accumulation and index dtypes, the same for every operation."""

import jax
import jax.numpy as jnp

__all__ = ["common", "narrow", "signed", "wide"]


def common(*arrays: jax.Array) -> list[jax.Array]:
    """Cast `arrays` to the dtype that holds them all: float32 beside bfloat16 is float32."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*arrays)
    return [jnp.asarray(a).astype(dtype) for a in arrays]


def wide(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype to accumulate in: float32, or `dtype` where that is wider.

    >>> wide(jnp.dtype("bfloat16")), wide(jnp.dtype("float64"))
    (dtype('float32'), dtype('float64'))
    """
    return dtype if dtype.itemsize > 4 else jnp.dtype(jnp.float32)


def narrow(x: jax.Array, like: jax.Array) -> jax.Array:
    """Round `x` to the dtype of `like`: a cotangent has the dtype of its leaf."""
    return x.astype(like.dtype)


def signed(indices: jax.Array) -> jax.Array:
    """`indices` as integers that may be negative, none of them taken for another: 2³² + 1 is not 1."""
    dtype = jnp.int64 if indices.dtype.itemsize > 4 else jnp.int32
    return indices.astype(jax.dtypes.canonicalize_dtype(dtype))  # a pullback may run where x64 is off again
