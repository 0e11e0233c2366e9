"""A CUDA driver and frameworks, for hosts without a GPU; they do what real ones were seen to do.

That is told in docs/internals/gpus.md. The driver is a library that the tests compile. The frameworks are modules in
``site``: put on the path of a worker, their classes have the names and modules of the real ones, and they obey the same
caps.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
#: To be put on the path of whoever shall find the frameworks.
SITE = _HERE / "site"
LIBRARY = "libcuda.so.1"


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the compiled driver, for ``LD_LIBRARY_PATH``."""
    folder = tmp_path_factory.mktemp("fake-cuda")
    compiler = shutil.which("cc")
    if compiler is None:
        if os.environ.get("CI"):
            pytest.fail("the fake CUDA driver needs a C compiler (cc), and CI must have one")
        pytest.skip("no C compiler (cc) for the fake CUDA driver")
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", str(folder / LIBRARY), str(_HERE / "libcuda.c")], check=True)
    return folder
