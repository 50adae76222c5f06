"""Training: a state, a jitted step, batches and a loop; each works without the others."""

from funcnet.train.data import batches, in_order
from funcnet.train.evaluation import evaluate
from funcnet.train.history import History
from funcnet.train.loop import NonFiniteError, fit
from funcnet.train.metric import Mean
from funcnet.train.state import LossScale, State, init
from funcnet.train.step import make_step

__all__ = [
    "History",
    "LossScale",
    "Mean",
    "NonFiniteError",
    "State",
    "batches",
    "evaluate",
    "fit",
    "in_order",
    "init",
    "make_step",
]
