"""What a framework weighs: the closure of its requirements, and the sizes of files."""

from importlib import metadata

from benchmarks import footprint


def test_a_closure_holds_what_an_installer_fetches():
    sizes = footprint.closure("jax")
    assert next(iter(sizes)) == "jax"
    assert {"jaxlib", "ml-dtypes", "numpy", "scipy", "opt-einsum"} <= {*sizes}
    assert "kubernetes" not in sizes, "of an extra"
    assert {*sizes} < {*footprint.closure("funcnet")}
    assert {*footprint.closure("funcnet[cli]")} - {*footprint.closure("funcnet")} >= {"tyro", "matplotlib"}
    assert footprint.closure("no-such-distribution") == {"no-such-distribution": None}


def test_sizes_are_those_of_the_files():
    found = metadata.distribution("packaging")
    files = [file for file in found.files if file.suffix != ".pyc"]
    assert footprint.size(found) == sum(file.locate().stat().st_size for file in files)
    package = footprint.size(metadata.distribution("funcnet"))
    assert 500_000 < package < 10_000_000, "of the folder, though the installation be editable"


def test_a_peer_that_is_not_installed_is_a_stated_gap(monkeypatch):
    monkeypatch.setattr(footprint, "PEERS", {"jax": "import jax", "no-such-distribution": "import nothing"})
    assert footprint.installed().rows[1] == {
        "distribution": "no-such-distribution",
        "version": "not installed",
    }
