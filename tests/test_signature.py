import functools
import inspect

import jax
import pytest

from funcnet.errors import DTypeError, StructureError
from funcnet.signature import call, check
from tests.errors import golden


class Callable:
    def __call__(self, params, batch):
        return params, batch

    def method(self, params, batch, key):
        return params, batch, key


LOSSES = [  # (a loss that returns its arguments, what it is given for params 1, batch 2 and key 3)
    (lambda params, batch: (params, batch), (1, 2)),
    (lambda params, batch, key: (params, batch, key), (1, 2, 3)),
    (lambda p, b, k: (p, b, k), (1, 2, 3)),
    (lambda p, b, k=None: (p, b, k), (1, 2, 3)),
    (lambda p, b, key=0: (p, b, key), (1, 2, 3)),
    (lambda p, b, train=True: (p, b, train), (1, 2, True)),
    (lambda p, b, scale=0.5, key=None: (p, b, scale, key), (1, 2, 0.5, 3)),
    (lambda *args: args, (1, 2, 3)),
    (lambda p, *rest: (p, *rest), (1, 2, 3)),
    (lambda p, *rest, key: (p, *rest, key), (1, 2, 3)),
    (lambda p, b, *, key: (p, b, key), (1, 2, 3)),
    (lambda p, b, *, key=None: (p, b, key), (1, 2, 3)),
    (lambda p, b, **options: (p, b, options), (1, 2, {})),
    (functools.partial(lambda p, b, key: (p, b, key), key=7), (1, 2, 7)),
    (functools.partial(lambda config, p, b, key: (config, p, b, key), "config"), ("config", 1, 2, 3)),
    (functools.partial(lambda p, b, scale, key: (p, b, scale, key), scale=7), (1, 2, 7, 3)),
    (Callable(), (1, 2)),
    (Callable().method, (1, 2, 3)),
    (jax.jit(lambda p, b: (p, b)), (1, 2)),
    (jax.jit(lambda p, b, key: (p, b, key)), (1, 2, 3)),
    (jax.checkpoint(lambda p, b: (p, b)), (1, 2)),
]


@pytest.mark.parametrize(("loss", "given"), LOSSES, ids=range(len(LOSSES)))
def test_a_loss_gets_what_it_takes(loss, given):
    assert call("here", loss, 1, None, 2, 3) == given


def test_with_a_model_state():
    def three(params, model_state, batch):
        return params, model_state, batch

    assert call("here", three, 1, {}, 2, 3) == (1, {}, 2)
    assert call("here", lambda *args: args, 1, {}, 2, 3) == (1, {}, 2, 3)
    assert call("here", lambda p, m, b, *, key: (p, m, b, key), 1, {}, 2, 3) == (1, {}, 2, 3)


def test_what_does_not_say_what_it_takes_is_given_all():
    with pytest.raises(ValueError, match="no signature"):
        inspect.signature(min)
    assert call("here", min, 3, None, 2, 1) == 1


def refuse(loss, *names):
    return lambda: check("here", "loss", loss, names)


KEYED, STATEFUL = ("params", "batch", "key"), ("params", "model_state", "batch", "key")
test_errors = golden(
    [
        (
            refuse(None, *KEYED),
            DTypeError,
            """here: loss is not a function.
  expected  loss(params, batch) or loss(params, batch, key)
  got       None (NoneType)""",
        ),
        (
            refuse(lambda params: 0, *KEYED),
            StructureError,
            """here: loss does not take the arguments that it is given.
  expected  loss(params, batch) or loss(params, batch, key)
  got       loss(params)""",
        ),
        (
            refuse(lambda params, key, batch: 0, *KEYED),
            StructureError,
            """here: loss does not take the arguments that it is given.
  expected  loss(params, batch) or loss(params, batch, key)
  got       loss(params, key, batch)""",
        ),
        (  # without the names, the batch would be its state and the key its batch
            refuse(lambda params, model_state, batch: 0, *KEYED),
            StructureError,
            """here: loss does not take the arguments that it is given.
  expected  loss(params, batch) or loss(params, batch, key)
  got       loss(params, model_state, batch)
  hint      this run has no model_state: give it the one that the function takes""",
        ),
        (  # the same, where the state is called something else
            refuse(lambda p, s, batch: 0, *KEYED),
            StructureError,
            """here: loss does not take the arguments that it is given.
  expected  loss(params, batch) or loss(params, batch, key)
  got       loss(p, s, batch)
  hint      this run has no model_state: give it the one that the function takes""",
        ),
        (
            refuse(lambda params, batch, key: 0, *STATEFUL),
            StructureError,
            """here: loss does not take the arguments that it is given.
  expected  loss(params, model_state, batch) or loss(params, model_state, batch, key)
  got       loss(params, batch, key)""",
        ),
        (
            refuse(lambda params, batch, key, *rest, **more: 0, "params", "batch"),
            StructureError,
            """here: loss does not take the arguments that it is given.
  expected  loss(params, batch)
  got       loss(params, batch, key, *rest, **more)
  hint      no key is given here: bind one, functools.partial(loss, key=...)""",
        ),
    ]
)
