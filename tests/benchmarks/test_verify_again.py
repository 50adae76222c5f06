"""The study of names in several runs: another name is another, in words and place too."""

from benchmarks.studies import verify_again


def test_what_differs_is_counted():
    sign = ["x", "sign", "", "the negative", "negate it", "mine.py:3", ""]
    other = ["x", "scale", "", "too large", "halve it", "mine.py:3", ""]
    runs = [[[sign], [sign]], [[sign], [other]], [[sign], [[*sign[:-1], "-dy"]]]]
    assert [row["the same"] for row in verify_again.table(["a", "b"], runs).rows] == ["3 of 3", "1 of 3"]
    assert verify_again.table(["a", "b"], runs).rows[0]["named"] == "sign"


def test_every_core_is_busy_while_it_lasts():
    with verify_again._busy(1) as jobs:
        assert [job.poll() for job in jobs] == [None]
    assert jobs[0].poll() is not None
