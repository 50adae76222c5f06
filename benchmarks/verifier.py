"""The verifier beside other checkers of gradients: mistakes found and named, false alarms, time.

The formulas are a sample of the exam that `python -m benchmarks verify_mutants` scores in full, written by
hand by someone who had not seen the verifier, and of the right ones in benchmarks/studies.
"""

import statistics

from benchmarks import harness
from benchmarks.harness import QUICK, SMOKE, Entrant, Process, Scale, Table

# A process for each precision: JAX keeps constants of the one in which it first saw a formula. The verifier
# is given float32, and goes to float64 by itself.
VERIFY = Process("benchmarks.checkers", ("verify",))
FLOAT64 = Process("benchmarks.checkers", ("float64",))
FLOAT32 = Process("benchmarks.checkers", ("float32",))
CHECKERS = {
    "funcnet.verify": Entrant(VERIFY, "verify", "funcnet"),
    "torch.autograd.gradcheck, float64": Entrant(FLOAT64, "gradcheck", "torch"),
    "jax.test_util.check_grads, float64": Entrant(FLOAT64, "check_grads"),
    "jax.test_util.check_grads, float32": Entrant(FLOAT32, "check_grads"),
    "chex.assert_numerical_grads, float32": Entrant(FLOAT32, "chex", "chex"),
}

Answers = list[tuple[bool, bool, float]]  # it passes, it is named as labelled, seconds


def run(scale: Scale) -> list[Table]:
    """One row per checker, on every n-th wrong and right formula."""
    step = {SMOKE: 240, QUICK: 40}.get(scale, 6)
    present = {name: entrant for name, entrant in CHECKERS.items() if harness.installed(entrant.package)}
    wrong: dict[str, Answers] = {name: [] for name in present}
    right: dict[str, Answers] = {name: [] for name in present}
    with harness.running(entrant.process for entrant in present.values()) as workers:
        counts = workers[VERIFY].ask("counts")
        for answers, is_right, count in zip((wrong, right), (False, True), counts, strict=True):
            for number in range(0, count, step):
                for name, entrant in present.items():
                    answer = workers[entrant.process].ask("check", entrant.way, is_right, number)
                    answers[name].append(answer)
    rows = [_row(name, wrong[name], right[name]) if name in present else _gap(name) for name in CHECKERS]
    note = (
        f"Every {step}th of {counts[0]} wrong formulas (the exam's) and of {counts[1]} right ones; all at "
        "their defaults, but in reverse mode alone. Seconds are those of a first check, with compilation; "
        "the others are given jitted formulas. funcnet.verify goes on to a diagnosis of what is wrong."
    )
    return [Table("Checkers of gradients", rows, note)]


def _gap(name: str) -> dict[str, object]:
    return {"checker": name, "missed": f"{CHECKERS[name].package} is not installed"}


def _row(name: str, wrong: Answers, right: Answers) -> dict[str, object]:
    return {
        "checker": name,
        "missed": f"{sum(passes for passes, _, _ in wrong)} of {len(wrong)}",
        "false alarms": f"{sum(not passes for passes, _, _ in right)} of {len(right)}",
        "named as labelled": f"{sum(named for _, named, _ in wrong)} of {len(wrong)}",
        "wrong formula, median s": statistics.median(seconds for _, _, seconds in wrong),
        "right formula, median s": statistics.median(seconds for _, _, seconds in right),
    }
