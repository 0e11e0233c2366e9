"""What people install is the wheel, not this checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.processes import ROOT, clean_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PACKAGE = ROOT / "celery_allocator"


def _run(*argv: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in argv], cwd=cwd, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout with the build backend at hand (else pip fetches it)."""
    folder = tmp_path_factory.mktemp("wheel")
    isolation = ["--no-isolation"] if find_spec("hatchling") else []
    _run(sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel; the dependencies are those of the running one."""
    folder = tmp_path_factory.mktemp("installed")
    _run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # Only now: pip would take a checkout that is installed there for this one. A path file does not read the path
    # files of the folder it names, so an editable checkout stays out of reach.
    site = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    Path(site, "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return python


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Every source file, the Lua scripts and the typing marker; no tests, no examples."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = {
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert names == source
    assert {"celery_allocator/py.typed", "celery_allocator/ledger/lua/submit.lua"} <= names


def test_the_installed_package_is_the_wheels(installed: Path) -> None:
    """Not this checkout: otherwise the tests below would prove nothing."""
    where = _run(
        installed, "-I", "-c", "import celery_allocator; print(celery_allocator.__file__)", cwd=installed.parent
    )
    assert Path(where.strip()).is_relative_to(installed.parents[1])


def test_every_lua_script_is_read_from_the_installed_package(installed: Path) -> None:
    """The same operations as in the checkout, each joined with its libraries."""
    code = "from celery_allocator.ledger import scripts\nfor n in scripts.operations(): print(n, scripts.load(n).sha)"
    shipped = [line.split()[0] for line in _run(installed, "-I", "-c", code, cwd=installed.parent).splitlines()]
    assert shipped == sorted(path.stem for path in (PACKAGE / "ledger" / "lua").glob("[!_]*.lua"))


@pytest.mark.parametrize(
    "statement",
    [
        "import celery_allocator.demo",
        "import celery_allocator.plugin",
        "from celery_allocator import *",
        "from celery_allocator.surfaces import cli",
    ],
)
def test_the_installed_package_imports(installed: Path, statement: str) -> None:
    """Each of the doors that people come in by."""
    _run(installed, "-I", "-W", "error::SyntaxWarning", "-c", statement, cwd=installed.parent)


def test_the_console_script_runs(installed: Path) -> None:
    """``celery-allocator`` from another folder."""
    assert "Usage" in _run(installed.parent / "celery-allocator", "--help", cwd=installed.parent)


def test_the_metadata_has_the_extras(installed: Path) -> None:
    """``pip install celery-allocator[embedded]`` and the others."""
    code = "from importlib.metadata import metadata; print(*metadata('celery-allocator').get_all('Provides-Extra'))"
    extras = set(_run(installed, "-I", "-c", code, cwd=installed.parent).split())
    assert extras >= {"embedded", "demo", "flower", "test", "docs", "all"}
