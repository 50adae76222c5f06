"""Compression by low rank: how much of the accuracy on digits is left at how many FLOPs, without training.

The net is that of the recipe, trained as `funcnet train digits` does. Components and ranks are from 1,000 of
the training images, accuracies of the 360 test images. The peer is the usual choice, the singular vectors of
the kernels, at ranks that are chosen in the same way.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.harness import SMOKE, Scale, Table

SHARES = (0.9, 0.75, 0.5, 0.35, 1 / 3, 0.25, 0.15)
TARGETS = {0.5: "≥ 98.9 %", 1 / 3: "≥ 97.5 %"}


def run(scale: Scale) -> list[Table]:
    """Accuracy by the share of FLOPs."""
    from funcnet.analysis import lowrank

    params, config, net = trained(1 if scale == SMOKE else 40)
    images, test = data()
    rows, before = [], 1.0
    for share in SHARES[2:3] if scale == SMOKE else SHARES:
        row: dict[str, object] = {"FLOPs left": f"{share:.0%}"}
        for name, basis in {"components": None, "kernels": of_kernels}.items():
            small = compressed(net, params, config, images, share, basis)
            lost = lowrank.changed(net, params, small.params, config, *test)
            before, after = lost.accuracy or (1.0, 1.0)
            if basis is None:
                row |= {
                    "of the accuracy before": f"{after / before:.1%}",
                    "target": TARGETS.get(share, ""),
                    "changed, of 360": lost.changed,
                    "at most, at 95 %": f"{lost.at_most:.1%}",
                }
            else:
                row[f"{name}' singular vectors"] = f"{after / before:.1%}"
        rows.append(row)
    return [Table("Accuracy without further training", rows, f"Of the net itself: {before:.2%}.")]


def data() -> tuple[Any, tuple[Any, Any]]:
    """1,000 training images, in batches, and the test images with their labels."""
    from funcnet.tasks import digits

    train, test = digits.data()
    images = train.images[np.linspace(0, len(train.images) - 1, 1000).astype(int)]
    return np.split(images, 4), (test.images, test.labels)


def trained(epochs: int) -> tuple[Any, Any, Any]:
    """The parameters of the recipe's net after so many epochs, its config, and the net."""
    import jax

    from funcnet import train
    from funcnet.tasks import digits

    task = digits.prepare(digits.Options(epochs=epochs))
    init, _, steps = jax.random.split(jax.random.key(0), 3)
    state = train.init(digits.NET.init(init, task.config), task.optimizer, key=steps)
    for batch in task.batches():
        state, _ = task.step(state, batch)
    return state.params, task.config, digits.NET


def compressed(
    net: Any, params: Any, config: Any, images: Any, share: float, basis: Callable[..., Any] | None
) -> Any:
    """`lowrank.compress`, by another basis than the components if one is given."""
    from funcnet.analysis import lowrank

    own = lowrank.components_of
    lowrank.components_of = own if basis is None else basis
    try:
        return lowrank.compress(net, params, config, images, share)
    finally:
        lowrank.components_of = own


def of_kernels(where: str, apply: Any, params: Any, maps: Any, batches: Any) -> dict[str, Any]:
    """The right singular vectors of w, and the mean b, so that b stays."""
    del where, apply, batches
    from funcnet.analysis import _components, _maps
    from funcnet.linalg import as_matrices

    found = {}
    for name, each in maps.items():
        leaf = _maps.node_at(params, each.path)
        _, s, v = np.linalg.svd(np.asarray(as_matrices(leaf["w"], each.spec), np.float64))
        full = np.zeros((*s.shape[:-1], v.shape[-1]))
        full[..., : s.shape[-1]] = s**2
        mean = np.asarray(leaf["b"], np.float32).reshape(full.shape)
        found[name] = _components.Components(mean, v.swapaxes(-1, -2), full)
    return found
