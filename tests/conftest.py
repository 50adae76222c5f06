"""How the tests run: in float64, with strict dtype promotion and every annotation checked at run time.

`pytest --as-users` runs the float32 and bfloat16 laws again the way users run: x64 off, annotations not
checked.
"""

import jax
import pytest

AS_USERS = False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--as-users", action="store_true", help="x64 off; only the tests marked as_users")


def pytest_configure(config: pytest.Config) -> None:
    global AS_USERS
    AS_USERS = config.getoption("--as-users")
    config.addinivalue_line("markers", "as_users: run again with x64 off and annotations unchecked")
    jax.config.update("jax_enable_x64", not AS_USERS)
    jax.config.update("jax_num_cpu_devices", 4)
    if not AS_USERS:
        import jaxtyping

        jax.config.update("jax_numpy_dtype_promotion", "strict")
        jaxtyping.install_import_hook("funcnet", "beartype.beartype")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    keep = lambda item: "slow" not in item.keywords or "slow" in config.getoption("-m")
    if config.getoption("--as-users"):
        keep = lambda item: "as_users" in item.keywords
    config.hook.pytest_deselected(items=[item for item in items if not keep(item)])
    items[:] = filter(keep, items)


_tests_run = 0


@pytest.fixture(autouse=True)
def bounded_memory():
    """Forget compiled programs now and then: thousands of small ones fill gigabytes."""
    global _tests_run
    yield
    _tests_run += 1
    if _tests_run % 40 == 0:
        jax.clear_caches()


@pytest.fixture
def unchecked():
    """Annotations are not checked: funcnet's own errors speak, as they do for users."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
