"""Moves the locked versions, and tries quept with others.

    python scripts/versions.py lock       requirements/ moves to the newest versions that pyproject.toml allows
    python scripts/versions.py allowed    the tests with the newest versions that pyproject.toml allows
    python scripts/versions.py newest     the tests with the newest versions there are, whatever it allows
    python scripts/versions.py lowest     the tests with the oldest versions that it allows

uv resolves, in an environment of its own (.venv-uv); pip installs, into .venv-allowed, .venv-newest or .venv-lowest.
`--hold NAME` keeps a package at its locked version: PyTorch's newest may bring gigabytes of CUDA. `--show` resolves and
prints the versions, and stops there.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
LOCKED, BUILD = REQUIREMENTS / "locked.txt", REQUIREMENTS / "build.txt"
UV = "uv==0.13.9"  # what requirements/ was made with
# As pip takes it: no addresses, no hashes, so that any registry serves.
PLAIN = ("--quiet", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--no-header")
LOWEST_PYTHON = "3.11"
NEWEST = "newest.in"  # the requirements without their upper bounds
UPPER_BOUND = re.compile(r",?\s*(<=?|~=)\s*[0-9][^,;\"]*")


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("lock", "allowed", "newest", "lowest"))
    parser.add_argument("--hold", action="append", default=[], metavar="NAME", help="keep at its locked version")
    parser.add_argument("--show", action="store_true", help="print the versions, and install nothing")
    options = parser.parse_args()
    if options.what == "lock":
        lock()
        return 0
    environment = ROOT / f".venv-{options.what}"
    resolved = resolve(options.what, environment, options.hold)
    differ = show(options.what, resolved)
    if not differ:
        print("These are the locked versions, which `make test` tries: nothing to do.")
    return 0 if options.show or not differ else run_tests(options.what, environment, resolved)


def lock() -> None:
    """Write requirements/ anew."""
    universal = ("--universal", "--python-version", LOWEST_PYTHON, "--upgrade", *PLAIN)
    for source, target in ((("--extra", "dev", "pyproject.toml"), LOCKED), (("requirements/build.in",), BUILD)):
        _compile(*universal, *source, "--output-file", str(target))
        note = (
            f"# Exact versions that the tests passed with, for Python {LOWEST_PYTHON} and later; made by `make lock`.\n"
        )
        target.write_text(note + target.read_text())


def resolve(what: str, environment: Path, hold: list[str]) -> Path:
    """Write the versions to try into a file, and return it."""
    environment.mkdir(exist_ok=True)
    source = ROOT / "pyproject.toml"
    target, constraints = environment / "resolved.txt", environment / "hold.txt"
    if what == "newest":
        source = environment / NEWEST
        source.write_text("\n".join(_without_upper_bounds(hold)) + "\n")
    locked = _versions(LOCKED)
    if unknown := [name for name in hold if _name(name) not in locked]:
        sys.exit(f"error: --hold {unknown[0]}: no such package in {LOCKED}; give one of its names.")
    constraints.write_text("".join(f"{name}=={locked[_name(name)]}\n" for name in hold))
    extra = () if what == "newest" else ("--extra", "dev")
    lowest = ("--resolution", "lowest-direct") if what == "lowest" else ("--upgrade",)
    python = ("--python", sys.executable, "--constraint", str(constraints), "--output-file", str(target))
    _compile(*lowest, *extra, *python, *PLAIN, str(source))
    return target


def show(what: str, resolved: Path) -> bool:
    """Print the versions to try beside the locked ones, where they differ; returns whether any do."""
    locked, other = _versions(LOCKED), _versions(resolved)
    differing = {name: version for name, version in other.items() if locked.get(name) != version}
    print(f"\nPython {sys.version.split()[0]}, {len(other)} packages; those that are not as locked:")
    print(f"{'package':<24}{'locked':<14}{what}")
    for name, version in sorted(differing.items()):
        print(f"{name:<24}{locked.get(name, '-'):<14}{version}")
    print("none\n" if not differing else "", flush=True)
    return bool(differing)


def run_tests(what: str, environment: Path, resolved: Path) -> int:
    """Install the versions and run the tests; returns pytest's exit code."""
    python = environment / "bin" / "python"
    install = (str(python), "-m", "pip", "install", "--build-constraint", str(BUILD))
    _run(sys.executable, "-m", "venv", str(environment))
    _run(str(python), "-m", "pip", "install", "--quiet", "--constraint", str(BUILD), "--upgrade", "pip")
    if what == "newest":  # beyond the ranges that quept itself gives, so not by way of them
        _run(*install, "--constraint", str(resolved), "--requirement", str(environment / NEWEST))
        _run(*install, "--no-deps", "--editable", str(ROOT))
    else:
        _run(*install, "--constraint", str(resolved), "--editable", f"{ROOT}[dev]")
    return subprocess.run([str(python), "-m", "pytest", "-n", "2"], cwd=ROOT, check=False).returncode


def _without_upper_bounds(hold: list[str]) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    found = [each for each in (*project["dependencies"], *extras) if not each.startswith("quept")]
    held = {_name(name) for name in hold}
    return [each if _name(each) in held else UPPER_BOUND.sub("", each) for each in found]


def _versions(path: Path) -> dict[str, str]:
    """Package names and versions in a requirements file, for this Python."""
    python = ".".join(map(str, sys.version_info[:2]))
    found = {}
    for line in path.read_text().splitlines():
        if match := re.match(r"([\w.-]+)==([^\s;]+)(?:\s*;\s*(.*))?", line):
            name, version, marker = match.groups()
            limits = re.findall(r"python_full_version (<|>=) '([\d.]+)'", marker or "")
            if all((_parts(python) < _parts(at)) == (sign == "<") for sign, at in limits):
                found[_name(name)] = version
    return found


def _parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _name(requirement: str) -> str:
    """The normalized name of the package in a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[]", requirement)[0]).lower()


def _compile(*arguments: str) -> None:
    tools = ROOT / ".venv-uv"
    if not (tools / "bin" / "uv").exists():
        _run(sys.executable, "-m", "venv", str(tools))
        _run(str(tools / "bin" / "python"), "-m", "pip", "install", "--quiet", UV)
    _run(str(tools / "bin" / "uv"), "pip", "compile", *arguments)


def _run(*command: str) -> None:
    print("+", *command, flush=True)
    if (code := subprocess.run(command, cwd=ROOT, check=False).returncode) != 0:
        sys.exit(f"error: the command above failed with exit code {code}.")


if __name__ == "__main__":
    sys.exit(main())
