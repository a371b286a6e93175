"""Build, and check that what was built holds every file of the package and works on its own.

The build must not print a warning, and the index must be able to show the description. The wheel
is installed into an empty virtual environment, imported outside the checkout, and a user's program
is type-checked against it. With the tag of a release as an argument it must fit the version.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "flask_redis_guard"
#: What else is shipped: pytest imports it before everything.
PLUGIN = "flask_redis_guard_pytest"
SUFFIXES = {".py", ".lua", ".html", ".css", ".js", ".svg", ".typed"}
#: What a user's type checker sees of the installed package. Its unused ignores are errors.
PROGRAM = ROOT / "tests" / "typing" / "public_api.py"
#: What the archive of the sources needs beside the package, to build the docs and run the tests.
SOURCES = {
    "docs/index.md",
    "docs/conf.py",
    "tests/conftest.py",
    "Makefile",
    "tox.ini",
    "SECURITY.md",
}


def source_files() -> set[str]:
    """Every file of the package that must be shipped, relative to the checkout."""
    found = (path for name in (PACKAGE, PLUGIN) for path in (ROOT / name).rglob("*"))
    files = (path for path in found if path.suffix in SUFFIXES)
    return {path.relative_to(ROOT).as_posix() for path in files}


def only(pattern: str) -> Path:
    """The one file in ``dist/`` that matches."""
    (path,) = (ROOT / "dist").glob(pattern)
    return path


def require(where: str, found: set[str], *, more: frozenset[str] = frozenset()) -> None:
    """Exit with the names of the files that ``found`` lacks."""
    if missing := (source_files() | more) - found:
        sys.exit(f"{where} lacks {', '.join(sorted(missing))}")
    print(f"{where}: all {len(source_files() | more)} files")


def docs_files() -> set[str]:
    """Every file of the documentation, which must be in the archive of the sources."""
    files = (path for path in (ROOT / "docs").rglob("*") if path.is_file())
    names = {path.relative_to(ROOT).as_posix() for path in files}
    return {name for name in names if not name.startswith("docs/_build/") and ".pyc" not in name}


def require_nothing_else(wheel: str, found: set[str]) -> None:
    """Exit with the names of the files that the wheel has and should not."""
    metadata = re.compile(r"^flask_redis_guard-[^/]+\.dist-info/")
    if strange := {name for name in found - source_files() if not metadata.match(name)}:
        sys.exit(f"{wheel} has {', '.join(sorted(strange))}")


def require_whole_links(wheel: Path) -> None:
    """Exit with the links of the description that lead nowhere on the index."""
    with zipfile.ZipFile(wheel) as contents:
        (name,) = (name for name in contents.namelist() if name.endswith(".dist-info/METADATA"))
        text = contents.read(name).decode()
    links = re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    found = {one or other for one, other in links}
    if not found:
        sys.exit(f"{wheel.name} has no description with links")
    if relative := {link for link in found if not link.startswith("https://")}:
        sys.exit(f"the description links to {', '.join(sorted(relative))}")


def require_release(tag: str) -> None:
    """Exit unless the tag, the version and the changes fit one another."""
    (version,) = re.findall(r"^version = (.+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    if tag != f"v{version}":
        sys.exit(f"the tag is {tag}, the version {version}")
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    if not re.search(heading, (ROOT / "CHANGES.md").read_text(), re.MULTILINE):
        sys.exit(f"CHANGES.md has no '## [{version}] - YYYY-MM-DD'")


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


def install_and_use(wheel: Path) -> None:
    """Install the wheel alone, import it from another directory, and check a program's types."""
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
        beside = installed.with_name(PLUGIN)
        files = (path for top in (installed, beside) for path in top.rglob("*") if path.is_file())
        require("installed", {path.relative_to(installed.parent).as_posix() for path in files})
        program = Path(directory, "program.py")
        program.write_text(PROGRAM.read_text())
        mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python]
        subprocess.run([*mypy, str(program)], check=True, cwd=directory)


def main() -> None:
    """Build, and check wheel, sdist and installation."""
    for tag in sys.argv[1:]:
        require_release(tag)
    build()
    wheel, archive = only("*.whl"), only("*.tar.gz")
    twine = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(archive)]
    subprocess.run(twine, check=True)
    contents = set(zipfile.ZipFile(wheel).namelist())
    require(wheel.name, contents)
    require_nothing_else(wheel.name, contents)
    require_whole_links(wheel)
    with tarfile.open(archive) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
        require("sdist", names, more=frozenset(SOURCES | docs_files()))
    install_and_use(wheel)


if __name__ == "__main__":
    main()
