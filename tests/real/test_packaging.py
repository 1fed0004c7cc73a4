"""What users install is whole: from a wheel, from an editable install and from a checkout, `twistd caterwaul` runs a node.

Nothing is fetched: each environment sees the libraries of the one that runs the tests, and of Caterwaul only its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import pytest

from caterwaul.cluster.admin_socket import ask
from caterwaul.membership.errors import LocalError

ROOT = Path(__file__).parents[2]
SOURCES = ("caterwaul", "membership", "managers", "cluster", "twisted", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
TWISTD = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the repository holds, so that building leaves nothing in it."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache"))
        else:
            shutil.copy(source, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target), str(checkout))
    (built,) = target.glob("caterwaul-*.whl")
    return built


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def environment(path: Path, *install: str) -> Path:
    """Its Python. The libraries come from here by a path file, which brings no editable install along."""
    venv.create(path, with_pip=False, symlinks=True)
    python = path / "bin" / "python"
    (found,) = path.glob("lib/python*/site-packages")
    (found / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    if install:
        pip("--python", str(python), "install", "--no-deps", "--no-index", "--no-build-isolation", *install)
    return python


def runs_a_node(python: Path, cwd: Path, expected: Path, tmp_path: Path) -> None:
    """`twistd -n caterwaul` of this environment: Caterwaul comes from `expected`, answers, and leaves when asked to."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = subprocess.run([python, "-c", "import caterwaul; print(caterwaul.__file__)"], cwd=cwd, env=environ, capture_output=True, text=True, check=True)
    assert Path(where.stdout.strip()).is_relative_to(expected)
    socket = tmp_path / "a.sock"
    configuration = tmp_path / "node.toml"
    configuration.write_text(f'[node]\nname = "packed"\n[membership]\ndiscovery = []\n[admin]\nsocket = "{socket}"\n')
    command = [python, "-c", TWISTD, "-n", "--pidfile=", "caterwaul", "--config", str(configuration)]
    with subprocess.Popen(command, cwd=cwd, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert [member["name"] for member in wait_for(socket, process)["members"]] == ["packed"]
        finally:
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=20)
    assert "Traceback" not in out
    assert "Server Shut Down" in out
    assert not socket.exists()


def wait_for(socket: Path, process: subprocess.Popen[str]) -> dict[str, list[dict[str, object]]]:
    deadline = time.monotonic() + 20
    while True:
        try:
            found: dict[str, list[dict[str, object]]] = ask(socket, "/members")
            return found
        except LocalError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise
            time.sleep(0.05)


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for package in ("membership", "managers", "cluster") for path in (ROOT / package).rglob("*.py")}
    assert {f"caterwaul/{module}" for module in modules} <= names
    assert {"caterwaul/py.typed", "caterwaul/cluster/demo/page.html", "caterwaul/cluster/demo/look.html", "twisted/plugins/caterwaul_plugin.py"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"caterwaul", "twisted"}
    assert [name for name in names if name.startswith("twisted/")] == ["twisted/plugins/caterwaul_plugin.py"]
    assert any(name.endswith("/LICENSE") for name in names)


def test_a_node_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", str(wheel))
    runs_a_node(python, tmp_path, tmp_path / "venv", tmp_path)
    version = subprocess.run([tmp_path / "venv" / "bin" / "caterwaul", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("caterwaul 0.")


def test_a_node_runs_from_an_editable_install(checkout: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", "--editable", str(checkout))
    runs_a_node(python, tmp_path, checkout, tmp_path)


def test_a_node_runs_from_a_checkout(checkout: Path, tmp_path: Path) -> None:
    runs_a_node(environment(tmp_path / "venv"), checkout, checkout, tmp_path)
