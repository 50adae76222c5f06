"""The peers: plain JAX's default flags in a process with the guard are those of a process without it."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks import peers

PROGRAM = """
import re, sys, funcnet, jax, jax.numpy as jnp
from benchmarks.peers.plain import DEFAULT_FLAGS
def f(x, w, a):
    y = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y, y.sum((0, 1, 2)), a @ a, jnp.exp(a @ a).sum(0)
options = {"default": None, "flags": DEFAULT_FLAGS}[sys.argv[1]]
shapes = (4, 32, 32, 64), (3, 3, 64, 64), (256, 256)
text = jax.jit(f, compiler_options=options).lower(*map(jnp.ones, shapes)).compile().as_text()
print(re.sub(r"metadata={[^}]*}|HloModule.*", "", text))
"""


def compiled(flags: str, guard: str) -> str:
    environment = {**os.environ, "FUNCNET_XLA_GUARD": guard, "XLA_FLAGS": ""}
    command = [sys.executable, "-c", PROGRAM, flags]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_default_flags_give_the_program_of_a_process_without_the_guard():
    default = compiled("default", "off")
    assert "__ynn" in default
    assert compiled("flags", "on") == default
    assert compiled("default", "on") != default, "the guard makes no difference here: nothing is tested"


def test_every_peer_says_how_its_step_is_written_and_where_that_is_recommended():
    idioms = peers.idioms()
    assert {*idioms} == {"ours", "plain", "nnx", "equinox", "haiku", "torch"}
    assert all("https://" in idiom or "docs/" in idiom for idiom in idioms.values())
