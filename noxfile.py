"""Every check of the project, one session each; `nox -l` lists them.

`nox -s "tests(backend='jax')"` tests one backend, in an environment that has no other;
`nox -s tests -- -k cg` hands what follows the dashes to pytest.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
# Not uv: it ignores the settings of pip, and so may fetch a CUDA build of torch.
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "types", "tests", "plugin", "coverage", "docs"]

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
DEPENDENCIES: list[str] = PYPROJECT["project"]["dependencies"]
LOWEST_PYTHON: str = PYPROJECT["project"]["requires-python"].removeprefix(">=")
CONSTRAINTS = ROOT / "constraints.txt"
COVERAGE = ROOT / ".nox" / "covered"

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


@dataclass(frozen=True)
class Suite:
    """What is tested in an environment that has the extras and nothing else.

    Attributes:
        extras: of the wheel.
        tests: folders and files under `tests`; what needs another library is not among them.
        packages: whose doctests run.
    """

    extras: tuple[str, ...]
    tests: tuple[str, ...]
    packages: tuple[str, ...] = ()


SUITES = {
    "none": Suite(
        extras=(),
        tests=(
            "core",
            "calculators",
            "storage",
            "plugins",
            "packaging",
            "conformance/test_[cmo]*.py",
        ),
        packages=("influence_core",),
    ),
    "torch": Suite(
        ("torch",),
        (
            "torch",
            "conformance/test_torch.py",
            "conformance/test_mutants.py",
            "calculators/test_loaders.py",
            "storage/test_torch.py",
        ),
        ("influence_torch",),
    ),
    "jax": Suite(
        ("jax",),
        ("jax", "conformance/test_jax.py", "storage/test_jax.py"),
        ("influence_jax",),
    ),
    "sklearn": Suite(
        ("sklearn",),
        ("sklearn", "conformance/test_sklearn.py", "storage/test_sklearn.py"),
        ("influence_sklearn",),
    ),
    # what needs several libraries: the same numbers everywhere, data sets, examples, documentation
    "all": Suite(
        extras=("all",),
        tests=(
            "agreement",
            "benchmarks",
            "docs",
            "examples",
            "jax/test_bad_input.py",
            "jax/test_signatures.py",
            "packaging",
            "sklearn/test_influences.py",
            "torch/test_ekfac.py",
            "torch/test_leave_one_out.py",
        ),
    ),
}


@nox.session
@nox.parametrize("backend", list(SUITES))
def tests(session: nox.Session, backend: str) -> None:
    """Every test and doctest of one backend, on the installed wheel, without the others."""
    suite = SUITES[backend]
    install_wheel(session, CONSTRAINTS, *suite.extras)
    if backend == "jax":  # whose models the tests take; no extra needs them
        session.install("-c", CONSTRAINTS, *group("jax"))
    doctests = ("--doctest-modules", "--pyargs", *suite.packages) if suite.packages else ()
    folders = [path for pattern in suite.tests for path in (ROOT / "tests").glob(pattern)]
    options = ("--cov", "--cov-report=", "-n", "2")
    run_pytest(session, *options, *folders, *doctests, name=backend)
    if backend == "torch":  # the core's own tests on its tensors: this is part of their names
        run_pytest(session, *options, ROOT / "tests" / "core", "-k", "torch", name="core-torch")


@nox.session
def plugin(session: nox.Session) -> None:
    """The plug-in of `examples/plugin` as a stranger's: two wheels in an empty environment."""
    session.install("-c", CONSTRAINTS, *group("build"), "pytest")
    wheels = build_wheels(session, ROOT, ROOT / "examples" / "plugin")
    session.install("-c", CONSTRAINTS, "--force-reinstall", "--no-deps", *wheels)
    session.install("-c", CONSTRAINTS, *wheels)
    folder = ROOT / "examples" / "plugin"
    with session.chdir(session.create_tmp()):
        settings = ("--rootdir", folder, "-c", folder / "pyproject.toml", "-p", "no:cacheprovider")
        session.run("python", "-P", "-m", "pytest", *settings, folder / "tests", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Lines and branches that the tests of all backends ran, together."""
    session.install("-c", CONSTRAINTS, "coverage")
    files = sorted(COVERAGE.glob(".coverage.*"))
    if not files:
        session.skip("no tests have run yet")
    session.run("coverage", "combine", "--keep", f"--data-file={COVERAGE / 'all'}", *files)
    session.run("coverage", "report", f"--data-file={COVERAGE / 'all'}")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, in `site/`, with warnings as errors."""
    session.install("-c", CONSTRAINTS, *group("docs"))
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


# What is installed without its dependencies, which a group of pyproject.toml lists.
PEERS = {"pydvl": None, "kronfluence": "kronfluence==1.0.1"}


@nox.session(default=False)
def benchmark(session: nox.Session) -> None:
    """Measure time and memory against the peers; `-- --smoke` shows in seconds that it runs."""
    install_wheel(session, CONSTRAINTS, "torch", "sklearn", "plot")
    smoke = "--smoke" in session.posargs
    peers = () if smoke else (f"--peer={name}={peer(session, name)}" for name in PEERS)
    session.run("python", "benchmarks/run.py", *peers, *session.posargs)


def peer(session: nox.Session, name: str) -> Path:
    """Install a peer into an environment of its own and return its interpreter."""
    folder = Path(session.virtualenv.location).resolve().with_name(f"benchmark-{name}")
    python = folder / "bin" / "python"
    if not python.exists():
        session.run("python", "-m", "venv", folder)
    # The same torch as ours. The other versions of `CONSTRAINTS` are not for old libraries.
    pins = [line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch==")]
    constraints = Path(session.create_tmp(), "peers.txt")
    constraints.write_text("\n".join(pins))
    install = (python, "-m", "pip", "install", "--quiet")
    session.run(*install, "-c", constraints, *group(f"peer-{name}"), external=True)
    if alone := PEERS[name]:
        session.run(*install, "--no-deps", alone, external=True)
    return python


def group(*names: str) -> tuple[str, ...]:
    """Requirements of the dependency groups `names`."""
    return nox.project.dependency_groups(PYPROJECT, *names)


def build_wheels(session: nox.Session, *projects: Path) -> list[Path]:
    """Build the wheel of every project."""
    folder = Path(session.create_tmp(), "wheel")
    shutil.rmtree(folder, ignore_errors=True)
    build = ("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    for project in projects:
        session.run("python", "-m", *build, "--wheel-dir", folder, project)
    return sorted(folder.glob("*.whl"))


def install_wheel(session: nox.Session, constraints: Path, *extras: str) -> None:
    """Build the wheel and install it with `extras` and the test tools."""
    session.install("-c", constraints, *group("build", "test"))
    (wheel,) = build_wheels(session, ROOT)
    session.install("-c", constraints, f"{wheel}[{','.join(extras)}]" if extras else wheel)
    # A reused environment has this version already, and pip would keep its older build.
    session.install("--force-reinstall", "--no-deps", wheel)


def run_pytest(session: nox.Session, *arguments: str | Path, name: str = "") -> None:
    """Run pytest on the installed wheel; what it covered is kept under `name`.

    It runs in `site-packages`: there the source tree cannot be imported, not even by a subprocess,
    and coverage prints short names.
    """
    temporary = Path(session.create_tmp()).resolve()
    COVERAGE.mkdir(parents=True, exist_ok=True)
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
                "COVERAGE_FILE": str(COVERAGE / f".coverage.{name or session.name}"),
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
