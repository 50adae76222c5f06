"""What the examples in docstrings have at hand without an import, and how their numbers print."""

import pytest


@pytest.fixture(autouse=True)
def examples(request: pytest.FixtureRequest):
    """Of the tests only those that are docstrings."""
    if type(request.node).__name__ != "DoctestItem":
        yield
        return
    import jax
    import jax.numpy as jnp
    import numpy as np

    import funcnet as fn

    request.getfixturevalue("doctest_namespace").update(jax=jax, jnp=jnp, np=np, fn=fn)
    with np.printoptions(precision=3, suppress=True):
        yield
