"""A wrong rule of each recurrence, which fn.verify must find, and the right one; the study has them all."""

import pytest

from benchmarks.studies import recurrent_mutants
from benchmarks.studies.recurrent_mutants import MISTAKES

ONE_EACH = {(m.operation, m.options): m for m in MISTAKES}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ONE_EACH.values(), ids=lambda m: f"{m.operation}: {m.words}")
def test_it_is_found(mistake):
    assert recurrent_mutants.row(mistake)["found"] == "yes"


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ONE_EACH.values(), ids=lambda m: m.operation)
def test_the_right_rule_is_right(mistake):
    assert recurrent_mutants.row(mistake._replace(new=mistake.old))["found"] == "no"
