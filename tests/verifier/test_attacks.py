"""No attack on a verdict succeeds: what is wrong is not right, what is right is not wrong."""

import jax
import pytest

from funcnet.errors import FuncnetError
from tests.budget import few
from tests.verifier.attacks import ATTACKS

MAY_BE = {
    "wrong": ("wrong",),
    "unseen": ("unseen", "wrong"),
    "right": ("right", "told"),
    "limit": ("right",),
    "refused": ("refused",),
}
FAST = 6  # every sixth attack is tried in the fast run, all of them in the slow one


def outcome(report):
    """What a verdict says; "told" if it is right, and says what it could not see."""
    if report.wrong:
        return "wrong"
    if not report.ok:
        return "unseen"
    return "told" if any("not seen: " in note for note in report.notes) else "right"


@pytest.mark.parametrize("name", few(ATTACKS, [*ATTACKS][::FAST]))
def test_no_attack_succeeds(name):
    attack = ATTACKS[name]
    if name.endswith("_in_torch"):
        pytest.importorskip("torch")
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        verify, args, options = attack.make()
        try:
            report = verify(*args, **options)
            came = outcome(report)
        except FuncnetError as error:
            came, report = "refused", error
    may = (*MAY_BE[attack.expected], *(("told",) if attack.expected == "unseen" else ()))
    assert came in may, f"{attack.why}\n{report}"
