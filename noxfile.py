"""Every check of the project, one session each; `nox -l` lists them.

`nox -s tests -- -k cg` hands what follows the dashes to pytest.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
# Not uv: it ignores the settings of pip, and so may fetch a CUDA build of torch.
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "types", "tests", "docs"]

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
DEPENDENCIES: list[str] = PYPROJECT["project"]["dependencies"]
LOWEST_PYTHON: str = PYPROJECT["project"]["requires-python"].removeprefix(">=")
CONSTRAINTS = ROOT / "constraints.txt"

FIND_WHEEL = """
import influence_core, pathlib, sysconfig
site_packages = pathlib.Path(sysconfig.get_path("purelib"))
found = pathlib.Path(influence_core.__file__)
assert found.is_relative_to(site_packages), f"not the installed wheel: {found}"
print(site_packages)
"""


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, and the direction of imports."""
    session.install("-c", CONSTRAINTS, *group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", env={"PYTHONPATH": "backends"})


@nox.session
def types(session: nox.Session) -> None:
    """Types of the core, strictly."""
    session.install("-c", CONSTRAINTS, *DEPENDENCIES, *group("types"))
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Every test and doctest, on the installed wheel, with coverage."""
    install_wheel(session, CONSTRAINTS, "torch", "sklearn", "plot")
    doctests = ("--doctest-modules", "--pyargs", "influence_core", "influence_torch")
    run_pytest(session, "--cov", "-n", "2", ROOT / "tests", *doctests)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, in `site/`, with warnings as errors."""
    session.install("-c", CONSTRAINTS, *group("docs"))
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(default=False)
def benchmark(session: nox.Session) -> None:
    """Measure time and memory."""
    install_wheel(session, CONSTRAINTS, "torch", "sklearn")
    session.run("python", "benchmarks/run.py", *session.posargs)


def group(*names: str) -> tuple[str, ...]:
    """Requirements of the dependency groups `names`."""
    return nox.project.dependency_groups(PYPROJECT, *names)


def install_wheel(session: nox.Session, constraints: Path, *extras: str) -> None:
    """Build the wheel and install it with `extras` and the test tools."""
    folder = Path(session.create_tmp(), "wheel")
    shutil.rmtree(folder, ignore_errors=True)
    session.install("-c", constraints, *group("build", "test"))
    build = ("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    session.run("python", "-m", *build, "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    session.install("-c", constraints, f"{wheel}[{','.join(extras)}]" if extras else wheel)
    # A reused environment has this version already, and pip would keep its older build.
    session.install("--force-reinstall", "--no-deps", wheel)


def run_pytest(session: nox.Session, *arguments: str | Path) -> None:
    """Run pytest on the installed wheel.

    It runs in `site-packages`: there the source tree cannot be imported, not even by a subprocess,
    and coverage prints short names.
    """
    temporary = Path(session.create_tmp()).resolve()
    # -P: the present folder, which holds the source tree, does not count.
    site_packages = session.run("python", "-P", "-c", FIND_WHEEL, silent=True)
    settings = ROOT / "pyproject.toml"
    with session.chdir(site_packages.strip()):
        session.run(
            *("pytest", "-c", settings, "--rootdir", ROOT, "--cov-config", settings),
            *("-o", f"cache_dir={temporary / 'cache'}"),
            *arguments,
            *session.posargs,
            # Two workers on two cores: threads of their own would only get in each other's way.
            env={
                "COVERAGE_FILE": str(temporary / "coverage"),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
        )


def interpreter(version: str) -> str | None:
    """Path of a Python `version` that runs, or None.

    Finding a `python3.12` on PATH is not enough: the shims of pyenv lie there for every version,
    also for those that are not active.
    """
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    command = [f"python{version}", "-c", "import sys; print(sys.executable)"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def skip_without_python(session: nox.Session) -> None:
    """Skip where `interpreter` found none; nox itself would fail the session under CI=true."""
    if session.python is False:
        session.skip("this version of Python is not installed or does not run")


def core(session: nox.Session) -> None:
    """Tests of the core, without any framework, on another Python."""
    skip_without_python(session)
    install_wheel(session, CONSTRAINTS)
    run_pytest(session, ROOT / "tests" / "core")


for version in ("3.12", "3.13"):
    python = interpreter(version) or False
    nox.session(name=f"core-{version}", python=python, default=False)(core)


@nox.session(python=interpreter(LOWEST_PYTHON) or False, default=False)
def lowest(session: nox.Session) -> None:
    """Tests of the core on the lowest versions of Python and of its dependencies."""
    skip_without_python(session)
    pins = [dependency.replace(">=", "==") for dependency in DEPENDENCIES]
    names = {pin.partition("==")[0] for pin in pins}
    others = [
        line
        for line in CONSTRAINTS.read_text().splitlines()
        if line.partition("==")[0] not in names
    ]
    constraints = Path(session.create_tmp(), "lowest.txt")
    constraints.write_text("\n".join([*pins, *others]))
    install_wheel(session, constraints)
    run_pytest(session, ROOT / "tests" / "core")
