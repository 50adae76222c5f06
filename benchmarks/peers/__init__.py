"""The peers: what a user would pick instead. One file each, all with the same functions.

    PACKAGE                 the distribution that it needs; without it, the tables state a gap
    IDIOM                   how its step is written, and the page of its documentation that says so
    train(model)            a function that does one training step per call and gives the loss before it
    memory(model)           bytes that the compiled step plans (JAX)
    first(model, loop)      the stages up to the end of the first step; loop: one scanned block

`python -m benchmarks.peers jax` is a process where all on JAX live, `... torch` one of PyTorch.
"""

import ast
from pathlib import Path

from benchmarks.harness import Entrant, Process

GUARDED = Process("benchmarks.peers", ("jax",))  # what an expert gets: XLA with the flag of funcnet's guard
DEFAULT = Process("benchmarks.peers", ("jax",), (("FUNCNET_XLA_GUARD", "off"),))  # what a user gets
TORCH = Process("benchmarks.peers", ("torch",))

# funcnet sets its guard's flag on import, so there is no second funcnet. Plain JAX is compiled with XLA's
# default flags in the process that has the flag; the frameworks give a program no options of its own.
TRAINING = {
    "funcnet": Entrant(GUARDED, "ours.train", "funcnet"),
    "plain JAX": Entrant(GUARDED, "plain.train_default_flags"),
    "plain JAX, guard's flag": Entrant(GUARDED, "plain.train"),
    "Flax NNX": Entrant(DEFAULT, "nnx.train", "flax"),
    "Flax NNX, guard's flag": Entrant(GUARDED, "nnx.train", "flax"),
    "Equinox": Entrant(DEFAULT, "equinox.train", "equinox"),
    "Equinox, guard's flag": Entrant(GUARDED, "equinox.train", "equinox"),
    "Haiku": Entrant(DEFAULT, "haiku.train", "dm-haiku"),
    "Haiku, guard's flag": Entrant(GUARDED, "haiku.train", "dm-haiku"),
    "PyTorch": Entrant(TORCH, "torch.train", "torch"),
    "PyTorch, torch.compile": Entrant(TORCH, "torch.train_compiled", "torch"),
}


def idioms() -> dict[str, str]:
    """How each peer's step is written, read from the sources: nothing is imported."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            match node:
                case ast.Assign(targets=[ast.Name(id="IDIOM")]):
                    found[path.stem] = ast.literal_eval(node.value)
    return found
