"""What a hot module may hold: mypyc leaves out what a class says beside its bases (``array_like=True``), so that compiled it is another one."""

import ast
import importlib
import inspect

import pytest

from headrace.hot import MODULES


@pytest.mark.parametrize("name", MODULES)
def test_no_class_says_more_than_its_bases(name: str) -> None:
    tree = ast.parse(inspect.getsource(importlib.import_module(name)))
    assert [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.keywords] == []
