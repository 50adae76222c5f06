"""Batches on a mesh: the global order, whatever wraps it, and what is refused."""

import jax
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.train import batches, mapped, prefetch, tokens, write_tokens

X = np.arange(24, dtype=np.int32)


@pytest.fixture(params=["Explicit", "Auto"])
def mesh(request):
    types = (getattr(jax.sharding.AxisType, request.param),) * 2
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=types)
    with jax.set_mesh(mesh):
        yield mesh


def test_any_iterator_in_its_own_order(mesh, tmp_path):
    write_tokens(tmp_path / "ids.npy", np.arange(100) % 50)
    make = {
        "batches": lambda: batches({"x": X, "y": X[:, None]}, 8, seed=1, epochs=2),
        "transform": lambda: batches(X, 8, seed=1, epochs=1, transform=lambda b, rng: b + rng.integers(9)),
        "tokens": lambda: tokens(tmp_path / "ids.npy", 4, 8, seed=1, epochs=1),
        "mapped": lambda: mapped(batches(X, 8, seed=1, epochs=1), lambda batch, number: batch * number),
        "prefetch": lambda: prefetch(batches(X, 8, seed=1, epochs=1)),
        "list": lambda: iter([(X[:8], 3)]),
    }
    for name, source in make.items():
        found = list(fn.shard.place(source(), over="data"))
        assert found, name
        for one, other in zip(found, source(), strict=True):
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.sharding == jax.NamedSharding(mesh, jax.P(("data",)) if a.ndim else jax.P())


def test_several_axes_none_and_a_mesh_that_is_given(mesh):
    for over, rows in ((("data", "tensor"), 2), ((), 8), (["tensor"], 4)):
        placed = next(fn.shard.place(batches(X, 8, seed=1), over=over))
        assert placed.addressable_shards[0].data.shape == (rows,)
    other = jax.make_mesh((4,), ("n",))
    assert next(fn.shard.place([X], over="n", mesh=other)).sharding.mesh == other


def test_a_thread_puts_batches_on_the_mesh(mesh):
    """Threads do not see the mesh that is set."""
    ahead = prefetch(fn.shard.place(batches(X, 8, seed=1)))
    first, second = next(ahead), next(ahead)
    assert first.sharding == second.sharding == jax.NamedSharding(mesh, jax.P(("data",)))
    place = ahead.position()
    ahead.close()
    again = fn.shard.place(batches(X, 8, seed=1))
    again.seek(place)
    assert next(again).tolist() == list(batches(X, 8, seed=1, epochs=1))[2].tolist()
    assert again.skipped == 0


def test_an_iterable_may_fill_the_same_array_again(mesh):
    def filling():
        buffer = np.zeros(4, np.float32)
        for number in range(3):
            buffer[:] = number
            yield buffer

    assert [np.asarray(batch)[0] for batch in list(fn.shard.place(filling()))] == [0, 1, 2]


def test_what_does_not_divide_is_refused_and_read_again(mesh):
    source = batches(X, 9, seed=1)
    placed = fn.shard.place(source)
    for transform in (None, lambda batch, rng: batch):
        source = batches(X, 9, seed=1, transform=transform)
        with pytest.raises(ShapeError, match="does not divide over the devices") as error:
            next(fn.shard.place(source))
        assert "a multiple of 2 examples: the mesh has 2 devices along data" in str(error.value)
        assert error.value.hint == "a size of 8"
        assert source.position()["batch"] == 0
    assert placed.position()["batch"] == 0


def test_bad_input(unchecked):
    with pytest.raises(ValueRangeError, match="there is no mesh"):
        fn.shard.place([])
    with jax.set_mesh(jax.make_mesh((4,), ("data",))):
        with pytest.raises(ValueRangeError, match="the mesh has no axis 'dat'") as error:
            fn.shard.place([], over="dat")
        assert error.value.hint == "'data'?"
        for over in (3, (1,), {"data"}):
            with pytest.raises(DTypeError, match="over is no name"):
                fn.shard.place([], over=over)
        with pytest.raises(DTypeError, match="no iterable of batches"):
            fn.shard.place(X)
        with pytest.raises(DTypeError, match="no array of numbers"):
            next(fn.shard.place(["text"]))
        placed = fn.shard.place(iter([X]))
        assert not hasattr(placed, "position")
        assert not hasattr(placed, "seek")
