"""How the tests run: in float64, with strict dtype promotion and every annotation checked at run time.

Most of their time is XLA's, so it is told not to optimise. `pytest --as-users` runs the float32 and bfloat16
laws the way users run: optimised, x64 off, annotations not checked.
"""

import os
import signal
import time
from pathlib import Path

import hypothesis
import jax
import pytest

from tests.budget import spread

pytest.register_assert_rewrite("tests.errors", "tests.laws")

# What CI draws is the same every time, and a failure is told as it was found: to shrink it takes minutes.
phases = hypothesis.Phase.explicit, hypothesis.Phase.generate
hypothesis.settings.register_profile("ci", derandomize=True, database=None, print_blob=True, phases=phases)

AS_USERS = False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--as-users", action="store_true", help="x64 off; only the tests marked as_users")
    of_each = "of a test with more cases than this, as many, spread evenly, unless it is marked each"
    parser.addoption("--of-each", type=int, metavar="CASES", help=of_each)
    parser.addoption("--minutes", type=float, default=float("inf"), help="begin no test after so many")


def pytest_configure(config: pytest.Config) -> None:
    global AS_USERS
    AS_USERS = config.getoption("--as-users")
    config.addinivalue_line("markers", "as_users: run again as users run")
    config.addinivalue_line("markers", "each: no case stands for another")
    config.addinivalue_line("markers", "only_as_users: says nothing without XLA's optimisations")
    os.environ["FUNCNET_CACHE"] = "off"  # commands keep nothing in the user's folders, nor find what is there
    jax.config.update("jax_enable_x64", not AS_USERS)
    jax.config.update("jax_num_cpu_devices", 4)
    if not AS_USERS:
        import jaxtyping

        # To split a small program between threads costs a quarter of its compiling.
        flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_parallel_codegen_split_count=1"]
        if jax.__version_info__ < (0, 11):  # MLIR's emitters take half of the time; later ones must
            flags.append("--xla_cpu_use_fusion_emitters=false")
        os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys(" ".join(flags).split()))  # workers have them
        jax.config.update("jax_disable_most_optimizations", True)
        jax.config.update("jax_numpy_dtype_promotion", "strict")
        jaxtyping.install_import_hook("funcnet", "beartype.beartype")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """As users, import only the files with such tests: to import all takes half a minute."""
    is_test = collection_path.match("test_*.py")
    return True if AS_USERS and is_test and "as_users" not in collection_path.read_text("utf-8") else None


@pytest.hookimpl(trylast=True)  # of what -m and -k leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = {"slow"} if "slow" not in config.getoption("-m") else set()
    asked = {"as_users", "only_as_users"} if AS_USERS else set()
    if not AS_USERS:
        left_out.add("only_as_users")

    def kept(item: pytest.Item) -> bool:
        return not left_out & item.keywords.keys() and (not asked or bool(asked & item.keywords.keys()))

    taken = {*spread(filter(kept, items), config.getoption("--of-each"))}
    config.hook.pytest_deselected(items=[item for item in items if item not in taken])
    items[:] = [item for item in items if item in taken]


BEGAN = time.monotonic()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.monotonic() - BEGAN > 60 * item.config.getoption("--minutes"):
        pytest.skip("no time is left: --minutes")


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C and a lost terminal mean what they do by default, also in the background and under nohup."""
    meant = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in meant.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


_tests_run = 0


@pytest.fixture(autouse=True)
def bounded_memory():
    """Forget compiled programs now and then: thousands of small ones fill gigabytes."""
    global _tests_run
    yield
    _tests_run += 1
    if _tests_run % 100 == 0:
        jax.clear_caches()


@pytest.fixture
def compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Processes that a test starts find what the first of them compiled, which must not be killed."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    for least in ("COMPILE_TIME_SECS", "ENTRY_SIZE_BYTES"):
        monkeypatch.setenv(f"JAX_PERSISTENT_CACHE_MIN_{least}", "0")


@pytest.fixture
def unchecked():
    """Annotations are not checked: funcnet's own errors speak, as they do for users."""
    import jaxtyping

    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
