"""Compiles the hot modules with mypyc where that is possible; everything else of the package stands in pyproject.toml.

A module of ``HOT`` is an ordinary typed module; compiled or not it does the same. Where mypyc or a C compiler is missing, where compiling fails,
or with ``HEADRACE_PURE=1``, the package is built without extensions and nobody is told but by ``headrace doctor``.
"""

import os
import runpy
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HOT = [f"src/{name.replace('.', '/')}.py" for name in runpy.run_path("src/headrace/hot.py")["MODULES"]]


def has_compiler() -> bool:
    """Whether a C compiler and Python's headers are there (Debian has the headers in a package of their own)."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    header = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(compiler) is not None and header.exists()


def extensions() -> list[Extension]:
    sources = [f for f in HOT if Path(f).exists()]
    if sys.argv[1:2] in (["egg_info"], ["dist_info"]):  # pip asks for these before it builds; compiling takes a while
        return []
    if os.environ.get("HEADRACE_PURE", "") not in ("", "0") or not sources or not has_compiler():
        return []
    try:
        from mypyc.build import mypycify

        options = ["--config-file=", "--python-version=3.11", "--ignore-missing-imports", "--follow-imports=silent", "--no-warn-unused-ignores"]
        built: list[Extension] = mypycify([*options, *sources], opt_level=os.environ.get("MYPYC_OPT_LEVEL", "3"))
        return built
    except (Exception, SystemExit) as error:  # mypycify exits on a type error
        print(f"headrace: not compiled ({error}); the pure Python modules do the same work, slower")
        return []


class OptionalBuildExt(build_ext):
    """Leaves the extensions out as a whole when one of them cannot be built."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            print(f"headrace: not compiled ({error}); the pure Python modules do the same work, slower")
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions = []
            self.distribution.ext_modules = []


os.environ.setdefault("MYPYPATH", "src")
setup(ext_modules=extensions(), cmdclass={"build_ext": OptionalBuildExt})
