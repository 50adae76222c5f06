"""Ready recipes: real data, a model, its training and its score. `funcnet train NAME` runs them.

A task is one module that can be read and copied as it stands. It has

- `Options`: a frozen dataclass of what can be chosen; `seed` is among it;
- `NET`: the module of `funcnet.nets` whose model it trains;
- `config(options) -> NET.Config`;
- `example(config)`: one input of the model, for `layers`;
- `prepare(options) -> Task`: the data, the loss, the optimizer, the evaluation;
- `predict(saved, path) -> Prediction`: what a trained model says about a file;
- `generate(saved, prompt, ...) -> str`, of a language model only: how it goes on with a text.

A new task is such a module and one line in `TASKS`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from funcnet.tasks import chars, digits, fashion, speech, tones

TASKS = {
    "digits": "scikit-learn's 1,797 handwritten digits, a convolutional network",
    "fashion": "Fashion-MNIST's 70,000 pictures of clothes, a convolutional network",
    "chars": "a text, a transformer that predicts the next character",
    "tones": "2,358 recorded Mandarin syllables, a convolutional recurrent network that hears the tone",
    "speech": "recordings of one's own, in folders or with transcripts, a convolutional recurrent network",
}

__all__ = ["TASKS", "chars", "digits", "fashion", "speech", "tones"]


def __getattr__(name: str) -> Any:
    if name in TASKS:
        return importlib.import_module(f"funcnet.tasks.{name}")
    raise AttributeError(f"module 'funcnet.tasks' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
