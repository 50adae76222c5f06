"""The study of models: what it hides is wrong, and it is found."""

import pytest

from benchmarks.harness import QUICK
from benchmarks.studies import verify_models


@pytest.mark.slow
def test_a_wrong_rule_is_found_in_each_model():
    (total,), models = (table.rows for table in verify_models.run(QUICK))
    assert len(models) == 4
    assert set(total.values()) == {4}


def test_each_way_is_taken():
    taken = {way for seed in range(verify_models.MODELS) for way in verify_models.model(seed, True).ways}
    assert taken == {*verify_models.WAYS}
    assert {verify_models.model(seed, True).made_by for seed in range(verify_models.MODELS)} == {
        *verify_models.RULES
    }
