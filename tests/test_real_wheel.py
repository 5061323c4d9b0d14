"""The wheel in somebody's project: it brings ``identity`` and its command, and leaves what is there alone."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
THEIRS = {
    "agent/__init__.py": "WHOSE = 'theirs'\n",
    "agent/tools.py": "def look_up() -> str:\n    return 'theirs'\n",
    "graphs/__init__.py": "",
    "graphs/assistant.py": "graph = 'theirs'\n",
    "tests/test_theirs.py": "def test_theirs() -> None:\n    pass\n",
    "langgraph.json": "{}\n",
}


def run(*command: str | Path, cwd: Path) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DEPUTIZE_", "PYTHON", "PIP_"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=kept, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this tree, by the build backend itself: no network, no isolated environment."""
    folder = tmp_path_factory.mktemp("dist")
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    return folder / run(sys.executable, "-c", build, folder, cwd=ROOT).splitlines()[-1]


@pytest.fixture(scope="module")
def project(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its own ``agent`` and ``graphs``, and the wheel in its own environment.

    Dependencies come from the environment that the tests run in, behind the project's own packages.
    """
    folder = tmp_path_factory.mktemp("project")
    for name, text in THEIRS.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    venv.create(folder / ".venv", with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder / ".venv")}))
    # Only the folder: the ``.pth`` of this tree's editable installation in there is not read from here.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    python = folder / ".venv" / "bin" / "python"
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--no-index", "--no-compile", "--force-reinstall", wheel, cwd=folder,
    )  # fmt: skip
    return folder


def test_the_wheel_holds_the_library_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"identity", f"deputize-{wheel.name.split('-')[1]}.dist-info"}
    assert {"identity/__init__.py", "identity/py.typed", "identity/cli/__init__.py"} <= set(names)
    ours = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "identity").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("identity/")} == ours  # templates and styles too


def test_the_wheel_says_what_it_is_and_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        told = archive.read(metadata).decode()
        (entry_points,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert archive.read(entry_points).decode().split() == [
            "[console_scripts]",
            "deputize",
            "=",
            "identity.cli:main",
        ]
        assert any(n.endswith("/licenses/LICENSE") for n in archive.namelist())
    assert "Name: deputize\n" in told
    assert "License-Expression: MIT\n" in told
    assert "Requires-Python: >=3.11\n" in told
    always = [line for line in told.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert [line for line in always if "openai" in line or "uvicorn" in line or "pytest" in line] == []


def test_their_own_packages_are_untouched_and_theirs_are_what_is_imported(project: Path) -> None:
    assert {name: (project / name).read_text(encoding="utf-8") for name in THEIRS} == THEIRS
    code = (
        "import identity, agent, agent.tools, graphs.assistant\n"
        "from identity import Identity, AccessToken, needs, resource, approval\n"
        "from identity.nodes import Nodes\n"
        "print(identity.__file__, agent.WHOSE, agent.tools.look_up(), graphs.assistant.graph, sep='\\n')"
    )
    where, *whose = run(project / ".venv" / "bin" / "python", "-c", code, cwd=project).splitlines()
    assert Path(where).is_relative_to(project / ".venv")
    assert whose == ["theirs"] * 3


def test_the_command_works_there(project: Path) -> None:
    deputize = project / ".venv" / "bin" / "deputize"
    told = run(deputize, "--help", cwd=project)
    assert told.startswith("Usage: deputize")
    assert "doctor" in told
    run(deputize, "--version", cwd=project)


def test_help_loads_neither_a_model_nor_a_graph(project: Path) -> None:
    """``deputize --help`` is typed often; langchain-openai alone takes a second to import."""
    code = (
        "import sys\nfrom identity.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "print(sorted(n for n in ('langchain_openai', 'langgraph', 'langchain_core', 'openai') if n in sys.modules))"
    )
    assert run(project / ".venv" / "bin" / "python", "-c", code, cwd=project).splitlines()[-1] == "[]"
