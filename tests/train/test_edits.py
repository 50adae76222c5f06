import itertools

import jax
import jax.numpy as jnp

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError
from funcnet.train import Mean, character_error_rate, edit_distance, word_error_rate
from tests.errors import golden


def naive(p, t):
    """By the definition: what may become of the last symbols."""
    if not p or not t:
        return len(p) + len(t)
    return min(naive(p[:-1], t) + 1, naive(p, t[:-1]) + 1, naive(p[:-1], t[:-1]) + (p[-1] != t[-1]))


def test_equals_the_definition():
    texts = ["".join(word) for n in range(4) for word in itertools.product("ab", repeat=n)]
    pairs = list(itertools.product(texts, texts))
    ids = jnp.asarray([[[*map(ord, text), 7, 7, 7][:3] for text in pair] for pair in pairs])
    lengths = jnp.asarray([[len(text) for text in pair] for pair in pairs])
    got = edit_distance(ids[:, 0], ids[:, 1], prediction_lengths=lengths[:, 0], target_lengths=lengths[:, 1])
    want = [naive(*pair) for pair in pairs]
    assert got.tolist() == want
    assert [character_error_rate([p], [t]).total for p, t in pairs] == want


def test_long_rows_and_their_edges():
    assert edit_distance(jnp.arange(60), jnp.arange(3, 65)) == 8
    assert edit_distance(jnp.zeros((2, 0), int), jnp.ones((2, 5), int)).tolist() == [5, 5]
    assert edit_distance(jnp.zeros((2, 5), int), jnp.ones((2, 0), int)).tolist() == [5, 5]
    assert edit_distance(jnp.zeros((0, 5), int), jnp.ones((0, 3), int)).shape == (0,)
    p, t = jnp.zeros((2, 3, 4), jnp.int8), jnp.ones((2, 3, 5), jnp.int32)
    assert jax.jit(edit_distance)(p, t).tolist() == [[5] * 3] * 2
    assert jax.vmap(edit_distance)(p, t).tolist() == [[5] * 3] * 2


def test_rates_add_up_over_texts():
    assert character_error_rate(["three", "foo"], ["tree", "four"]) == Mean(3, 8)
    assert word_error_rate(["to  be or not", ""], ["to be and not to", "yes"]) == Mean(3, 6)
    assert character_error_rate([], []) == Mean(0, 0)


def test_what_greedy_gives_is_measured():
    path = jnp.asarray([[0, 2, 2, 0, 2, 1, 1]])
    labels, number = fn.ctc.greedy(jax.nn.one_hot(path, 3))
    target = jnp.asarray([[2, 1, 1, 9]])
    got = edit_distance(labels, target, prediction_lengths=number, target_lengths=jnp.asarray([3]))
    assert got.tolist() == [1]


I32 = jnp.zeros((2, 3), jnp.int32)
test_errors = golden(
    [
        (
            lambda: edit_distance(I32, I32[0]),
            ShapeError,
            "edit_distance: target does not have the shape that prediction asks for.\n"
            "  expected  target: int[2, t]     (prediction: int32[2, 3])\n"
            "  got       target: int32[3]",
        ),
        (
            lambda: edit_distance([1, 2], I32),
            DTypeError,
            "edit_distance: prediction is not an array of integers.\n"
            "  expected  prediction: int[s]     (prediction: a list)\n"
            "  got       prediction: a list\n"
            "  hint      wrap it: jnp.asarray(...).",
        ),
        (
            lambda: character_error_rate("a", ["a"]),
            DTypeError,
            "character_error_rate: predictions are not a list of strings.\n"
            "  expected  predictions: a list or tuple of str\n"
            "  got       predictions: 'a' (str)\n"
            "  hint      one text is [predictions].",
        ),
        (
            lambda: word_error_rate(["a"], []),
            ShapeError,
            "word_error_rate: there are not as many predictions as targets.\n"
            "  expected  0 predictions     (the number of targets)\n"
            "  got       1",
        ),
    ]
)
