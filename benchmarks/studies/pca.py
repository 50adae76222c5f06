"""Principal components: how exact they are in float32, far from the origin too, and the time they take.

The truth is NumPy's, in float64, of the same float32 data. scikit-learn chooses its solver by size, as "auto"
does. Data are digits, and rows whose variances fall off as 1 / i² from one direction to the next.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.harness import SMOKE, Entrant, Process, Scale, Table

ALONE = "benchmarks.studies.pca"
METHODS = ("covariance", "svd", "randomized")
SIZES = {
    "digits, 1,797 × 64, k = 10": (1797, 64, 10),
    "20,000 × 64, k = 10": (20_000, 64, 10),
    "2,000 × 784, k = 50": (2000, 784, 50),
    "1,000 × 3,000, k = 50": (1000, 3000, 50),
}
TINY = {"digits, 1,797 × 64, k = 10": (1797, 64, 10), "50 × 70, k = 4": (50, 70, 4)}
OFFSETS = (0, 10_000)
TARGETS = {"covariance": 1e-6, "svd": 1e-5, "randomized": 1e-4}


def run(scale: Scale) -> list[Table]:
    """Errors of every method, and times against scikit-learn."""
    sizes = TINY if scale == SMOKE else SIZES
    ours, theirs = Process(ALONE, ("funcnet",)), Process(ALONE, ("scikit-learn",))
    with harness.running([ours]) as workers:
        rows = [
            row for case in sizes for offset in OFFSETS for row in workers[ours].ask("errors", case, offset)
        ]
    note = (
        "The largest error of a variance: relative to the largest of them, and relative to itself. Targets: "
        "covariance 1e-6 of the largest, svd 1e-5 of each, randomized 1e-4. “In pieces”: update, ten times."
    )
    timed: dict[str, dict[str, object]] = {}
    for case, (n, d, _) in sizes.items():
        entrants = {
            "scikit-learn, auto": Entrant(theirs, "auto", "scikit-learn"),
            "auto": Entrant(ours, "auto"),
            **{method: Entrant(ours, method) for method in METHODS if _worth(method, n, d)},
        }
        timed |= harness.race(entrants, [case], scale, tolerance=1e-2)
    table = [{"data": case, "auto is": _chosen(sizes[case]), **row} for case, row in timed.items()]
    ratios = [cell.ratio for row in timed.values() if isinstance(cell := row["auto"], harness.Measure)]
    mean = f"Geometric mean of auto's: {np.exp(np.mean(np.log(ratios))):.2f}. " if ratios else ""
    return [
        Table("Errors of the variances", rows, note),
        Table("Time of a fit", table, mean + "Ratios are to scikit-learn's; none above 1.3 is the target."),
    ]


def _worth(method: str, n: int, d: int) -> bool:
    """Whether a method may be the fastest; the others take up to minutes."""
    return {"covariance": d <= n, "svd": min(n, d) <= 100, "randomized": True}[method]


def _chosen(size: tuple[int, int, int]) -> str:
    from funcnet.linalg import pca

    return pca._fastest(size[:2], size[2])


def data(case: str, offset: float = 0.0) -> tuple[np.ndarray, int]:
    """The rows in float32, and k."""
    n, d, k = (SIZES | TINY)[case]
    if case.startswith("digits"):
        from sklearn.datasets import load_digits

        loaded: Any = load_digits()
        return (loaded.data + offset).astype(np.float32), k
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d)) / np.arange(1, d + 1)
    for _ in range(3):  # reflections, which turn it
        v = rng.standard_normal(d)
        x -= np.outer(x @ v, 2 * v / (v @ v))
    return (x + offset).astype(np.float32), k


def errors(case: str, offset: float) -> list[dict[str, object]]:
    """A row for each method and for the sums in pieces."""
    import jax.numpy as jnp

    from funcnet.linalg import pca

    x, k = data(case, offset)
    exact = x.astype(np.float64)
    exact -= exact.mean(0)
    small = exact.T @ exact if x.shape[1] <= len(x) else exact @ exact.T
    truth = np.linalg.eigvalsh(small)[::-1][:k] / (len(x) - 1)

    def pieces() -> Any:
        state = pca.empty(x.shape[1])
        for piece in np.array_split(x, 10):
            state = pca.update(state, jnp.asarray(piece))
        return pca.finish(state, k)

    ways: dict[str, Callable[[], Any]] = {
        method: lambda method=method: pca.fit(jnp.asarray(x), k, method=method) for method in METHODS
    }
    rows = []
    for name, way in (ways | {"in pieces": pieces}).items():
        off = np.abs(np.asarray(way().variances, np.float64) - truth)
        row = {"data": case, "offset": offset, "method": name}
        rows.append(
            row | {"of the largest": f"{off.max() / truth[0]:.1e}", "of each": f"{(off / truth).max():.1e}"}
        )
    return rows


def make(way: str, case: str) -> Callable[[], Any]:
    """The call to time."""
    x, k = data(case, 1.0)
    if sys.argv[1] == "scikit-learn":
        from sklearn.decomposition import PCA

        return lambda: PCA(k, svd_solver=way, random_state=0).fit(x)  # pyright: ignore[reportArgumentType]
    import jax.numpy as jnp

    from funcnet.linalg import pca

    rows = jnp.asarray(x)
    return lambda: pca.fit(rows, k, method=way)


def variances(found: Any) -> list[float]:
    """What both must agree on: the first and the sum."""
    values = found.explained_variance_ if hasattr(found, "explained_variance_") else found.variances
    return [float(values[0]), float(values.sum())]


if __name__ == "__main__":
    harness.serve(make, check=variances, others={"errors": errors})
