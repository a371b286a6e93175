"""Build, and check that what was built holds every file of the package and works on its own.

The build must not print a warning. The wheel is installed into an empty virtual environment and
imported outside the checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "flask_redis_guard"
SUFFIXES = {".py", ".lua", ".html", ".css", ".js", ".svg", ".typed"}


def source_files() -> set[str]:
    """Every file of the package that must be shipped, relative to the checkout."""
    files = (path for path in (ROOT / PACKAGE).rglob("*") if path.suffix in SUFFIXES)
    return {path.relative_to(ROOT).as_posix() for path in files}


def only(pattern: str) -> Path:
    """The one file in ``dist/`` that matches."""
    (path,) = (ROOT / "dist").glob(pattern)
    return path


def require(where: str, found: set[str]) -> None:
    """Exit with the names of the files that ``found`` lacks."""
    if missing := source_files() - found:
        sys.exit(f"{where} lacks {', '.join(sorted(missing))}")
    print(f"{where}: all {len(source_files())} files of the package")


def build() -> None:
    """Build sdist and wheel into ``dist/``; a warning is an error.

    Byte-compiling is off where the environment says so, which setuptools warns about.
    """
    environ = {key: text for key, text in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "build", str(ROOT)]
    done = subprocess.run(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nThe build failed.")
    if warnings := [line for line in done.stdout.splitlines() if "warning" in line.lower()]:
        sys.exit("\n".join(["The build warns:", *warnings]))
    print("built without a warning")


def install_and_import(wheel: Path) -> None:
    """Install the wheel alone and import it from another directory."""
    with tempfile.TemporaryDirectory() as directory:
        venv.create(directory, with_pip=True)
        python = str(Path(directory, "bin", "python"))
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, str(wheel)], check=True, cwd=directory)
        code = f"import {PACKAGE}, pathlib; print(pathlib.Path({PACKAGE}.__file__).parent)"
        command = [python, "-I", "-W", "error", "-c", code]
        printed = subprocess.run(command, check=True, cwd=directory, stdout=subprocess.PIPE)
        installed = Path(printed.stdout.decode().strip())
        assert Path(directory).resolve() in installed.resolve().parents, installed
        files = (path for path in installed.rglob("*") if path.is_file())
        require("installed", {path.relative_to(installed.parent).as_posix() for path in files})


def main() -> None:
    """Build, and check wheel, sdist and installation."""
    build()
    wheel = only("*.whl")
    require(wheel.name, set(zipfile.ZipFile(wheel).namelist()))
    with tarfile.open(only("*.tar.gz")) as sdist:
        require("sdist", {name.partition("/")[2] for name in sdist.getnames()})
    install_and_import(wheel)


if __name__ == "__main__":
    main()
