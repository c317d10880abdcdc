"""What a compiled module must say of itself. Without mypy's own package it says nothing: it then runs as pure Python.

``mypyc_attr(allow_interpreted_subclasses=True)`` marks a class of a hot module that ordinary modules derive from.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr
else:

    def mypyc_attr(*_marks, **_more):
        return lambda cls: cls
