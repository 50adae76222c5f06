"""Training: a state, a jitted step, batches and a loop; each works without the others."""

from funcnet.mean import Mean
from funcnet.train.agreement import PeersError
from funcnet.train.checkpoints import Checkpoints
from funcnet.train.cursor import RecordError
from funcnet.train.data import batches, in_order
from funcnet.train.edits import character_error_rate, edit_distance, word_error_rate
from funcnet.train.evaluation import evaluate
from funcnet.train.history import History
from funcnet.train.loop import NonFiniteError, fit
from funcnet.train.state import LossScale, State, init
from funcnet.train.stateful import stateful
from funcnet.train.step import make_step
from funcnet.train.token_files import tokens, write_tokens
from funcnet.train.wrap import mapped, prefetch

__all__ = [
    "Checkpoints",
    "History",
    "LossScale",
    "Mean",
    "NonFiniteError",
    "PeersError",
    "RecordError",
    "State",
    "batches",
    "character_error_rate",
    "edit_distance",
    "evaluate",
    "fit",
    "in_order",
    "init",
    "make_step",
    "mapped",
    "prefetch",
    "stateful",
    "tokens",
    "word_error_rate",
    "write_tokens",
]
