"""Where the photographs are, for the tests that need them; without them they skip with a word."""

import os
from pathlib import Path

import pytest


def data_folder(file: str) -> Path:
    """The folder that NNF_DATA names (or the usual one beside the repository), if it holds `file`; else skips."""
    folder = Path(os.environ.get("NNF_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    if not (folder / file).exists():
        pytest.skip(f"needs {file} in the folder named by NNF_DATA")
    return folder
