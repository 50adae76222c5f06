"""How many equations the traced program of each net has: tracing, lowering and compiling walk through all."""

import jax
import pytest

from benchmarks.studies.equations import count
from tests.nets.test_everywhere import NETS, drawn, gradient, sized

MOST = {  # of the forward pass, and of the gradient with it
    "mlp": (13, 34),
    "convnet": (111, 214),
    "crnn": (269, 564),
    "recurrent": (155, 435),
    "mamba": (197, 585),
    "vad": (152, 284),
    "resnet": (258, 521),
    "resnet with bottlenecks": (433, 863),
    "transformer": (336, 680),
    "transformer with rope": (363, 755),
    "transformer with alibi": (307, 881),
    "encoder": (364, 730),
    "vit": (314, 648),
}


@pytest.mark.parametrize("name", NETS)
def test_no_net_has_more_equations_than_it_had(name):
    net, config, apply, of = NETS[name]
    args = drawn(net, config), sized(of, b=2, t=5), jax.random.key(1)
    found = [count(jax.make_jaxpr(f)(*args).jaxpr) for f in (apply, gradient(apply))]
    more = [f"{n} of at most {most}" for n, most in zip(found, MOST[name], strict=True) if n > most]
    assert not more, f"{name}: {', '.join(more)}. Say in the commit what they are for, or leave them out."
