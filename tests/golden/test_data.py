"""Data directories of every format that was ever released are read as they were written."""

import json
import tarfile
from pathlib import Path

import pytest

from headrace.storage.state import LmdbStateStore
from tests.golden.make_data import HERE, read


@pytest.mark.parametrize("version", sorted(p.name for p in HERE.iterdir() if p.is_dir()))
@pytest.mark.parametrize("with_state", [True, False])
async def test_a_data_directory_is_read_as_it_was_written(version: str, with_state: bool, tmp_path: Path) -> None:
    with tarfile.open(HERE / version / "files.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    if with_state:
        state = LmdbStateStore(str(tmp_path / "state"))
        state.commit({bytes.fromhex(k): bytes.fromhex(v) for k, v in json.loads((HERE / version / "state.json").read_text())})
        state.close()
    assert await read(tmp_path) == json.loads((HERE / version / "expected.json").read_text())
