import subprocess
import sys

import pytest

import headrace


def test_importing_the_package_loads_nothing_of_the_client() -> None:
    code = "import sys, headrace; print([m for m in ('asyncio', 'msgspec', 'headrace.client') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_pytest_plugin_loads_almost_nothing() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import headrace.testing.plugin;"
        "print(sorted(m for m in set(sys.modules) - before if m.split('.')[0] not in ('headrace',)), 'headrace.client.client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[] False"


def test_every_public_name_is_there() -> None:
    for name in headrace.__all__:
        assert getattr(headrace, name) is not None
    assert set(headrace.__all__) <= set(dir(headrace))
    with pytest.raises(AttributeError, match="nonsense"):
        headrace.nonsense  # noqa: B018


def test_errors_have_a_public_module() -> None:
    from headrace import errors
    from headrace.model import errors as model

    assert set(errors.__all__) == {c.__name__ for c in model.BY_CODE.values()}
