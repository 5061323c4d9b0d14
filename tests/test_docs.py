"""What the documentation says is so: settings, commands, links, targets, paths, code, and the locked dependencies."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from identity.settings import Settings
from tests.docs import GENERATED, ROOT, commands, rewritten

PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md")] + sorted((ROOT / "docs").glob("*.md"))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def tracked() -> list[Path]:
    """The files that belong to the project."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = listed.stdout.decode().split("\0")
    return [path for name in names if name and (path := ROOT / name).is_file()]


# -- settings ----------------------------------------------------------------------------------------------------------

SETTINGS = {f"DEPUTIZE_{name.upper()}": field for name, field in Settings.model_fields.items()}


def rows() -> dict[str, list[str]]:
    """The table under "All of them": ``{name: [default, meaning, example]}``."""
    found: dict[str, list[str]] = {}
    _, _, below = text_of(ROOT / "docs" / "settings.md").partition("\n## All of them\n")
    for line in below.partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if name := re.fullmatch(r"`(DEPUTIZE_[A-Z_]+)`", cells[0]):
            assert name[1] not in found, f"{name[1]} is listed twice"
            found[name[1]] = cells[1:]
    return found


def test_every_setting_is_in_the_table_and_nothing_else_is() -> None:
    assert set(rows()) == set(SETTINGS)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_the_default_of_a_setting_is_the_one_that_is_told(name: str) -> None:
    default = SETTINGS[name].get_default()
    told = rows()[name][0]
    if default is None or default == "":
        assert "`" not in told or told == "\N{EN DASH}"
    else:
        assert f"`{int(default) if isinstance(default, bool) else default}`" in told


@pytest.mark.parametrize("name", [*NAMES, "Makefile", "langgraph.json"])
def test_no_page_names_a_setting_that_there_is_not(name: str) -> None:
    named = set(re.findall(r"\bDEPUTIZE_[A-Z][A-Z_]*[A-Z]\b", text_of(ROOT / name)))
    assert named - set(SETTINGS) == set()


def test_every_setting_is_explained_where_it_is_defined() -> None:
    explained = re.findall(r"^        (\w+): ", Settings.__doc__ or "", flags=re.M)
    assert sorted(explained) == sorted(Settings.model_fields)


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERATED)
def test_the_generated_parts_are_up_to_date(name: str) -> None:
    text = text_of(ROOT / name)
    assert rewritten(text, GENERATED[name]) == text, "run: python -m tests.docs"


def test_a_page_whose_markers_are_missing_is_not_taken_for_one_that_is_up_to_date() -> None:
    with pytest.raises(ValueError, match="cli:start"):
        rewritten("# A page", GENERATED["docs/cli.md"])


def test_every_command_that_a_page_names_exists() -> None:
    known = {name for name, _ in commands()}
    wrong = []
    for page in PAGES:
        text = text_of(page)
        shell = [line for block in blocks(text, "sh") for line in block.splitlines()]
        for line in [*shell, *re.findall(r"`([^`\n]+)`", prose(text))]:
            if found := re.match(r"(?:\S+=\S+ )*(?:\.venv/bin/)?(deputize(?: [a-z]+)*)\b", line.strip()):
                words = found[1].split()
                while words and " ".join(words) not in known:
                    words.pop()  # an argument, perhaps; a group's own name has to be left over
                longest = " ".join(words)
                if not longest or (longest == "deputize" and len(found[1].split()) > 1):
                    wrong.append(f"{page.name}: {line.strip()}")
    assert wrong == []


# -- links and paths ---------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", prose(text_of(page)), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[str]:
    text = prose(text_of(page))
    yield from re.findall(r"\]\(([^)\s]+)\)", text)
    yield from re.findall(r'<(?:img|a)\b[^>]*\b(?:src|href)="([^"]+)"', text)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    wrong = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            assert link.startswith(("https://", "mailto:")), link
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_file_of_the_project_that_is_named_exists(page: Path) -> None:
    named = re.findall(r"`((?:identity|agent|graphs|tests|docs|examples)/[\w./-]*)`", prose(text_of(page)))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_page_is_reached_from_the_readme() -> None:
    seen, due = set(), [ROOT / "README.md"]
    while due:
        page = due.pop()
        if page not in seen:
            seen.add(page)
            due += [
                found for link in links(page) if (found := (page.parent / link.partition("#")[0]).resolve()) in PAGES
            ]
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in seen] == []


# -- make --------------------------------------------------------------------------------------------------------------


def targets() -> dict[str, str]:
    """``{target: what make says about it}``."""
    return dict(re.findall(r"^([a-z]+):[^#\n]*(?:## (.*))?$", MAKEFILE, flags=re.M))


def test_every_target_says_what_it_does_and_makes_no_file() -> None:
    assert [name for name, told in targets().items() if not told] == []
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.M)
    assert phony is not None
    assert sorted(phony[1].split()) == sorted(targets())


@pytest.mark.parametrize("name", [*NAMES, ".ci/run"])
def test_every_target_that_a_page_names_exists(name: str) -> None:
    text = text_of(ROOT / name)
    code = [*re.findall(r"`([^`\n]+)`", prose(text)), *(line for b in blocks(text, "sh") for line in b.splitlines())]
    if not name.endswith(".md"):
        code = text.splitlines()
    named = {found[1] for line in code if (found := re.match(r"(?:exec )?make ([a-z]+)\b", line.strip()))}
    assert named - set(targets()) == set()


def test_every_target_is_named_in_the_documentation() -> None:
    told = "\n".join(text_of(page) for page in PAGES)
    assert [name for name in targets() if name != "help" and f"make {name}" not in told] == []


# -- code in pages -----------------------------------------------------------------------------------------------------

PYTHON = [
    pytest.param(block, id=f"{name}-{number}")
    for page, name in zip(PAGES, NAMES, strict=True)
    for number, block in enumerate(blocks(text_of(page), "python"), 1)
]


@pytest.mark.parametrize("block", PYTHON)
def test_python_in_a_page_is_python_and_imports_what_there_is(block: str) -> None:
    tree = compile(block, "<page>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("identity", "agent", "graphs"):
            module = importlib.import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


# -- the project -------------------------------------------------------------------------------------------------------


def test_what_langgraph_json_names_exists() -> None:
    """Read, not imported: the modules open a world when they are."""
    config = json.loads((ROOT / "langgraph.json").read_text(encoding="utf-8"))
    named = [*config["graphs"].values(), config["http"]["app"]]
    if "auth" in config:
        named.append(config["auth"]["path"])
    for spelled in named:
        module, _, name = spelled.partition(":")
        path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        assert path.is_file(), spelled
        bound = {
            node.id
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        assert name in bound, spelled


def test_the_version_of_the_project_has_an_entry_in_the_changelog() -> None:
    versions = re.findall(r"^## \[([^\]]+)\]", text_of(ROOT / "CHANGELOG.md"), flags=re.M)
    assert PROJECT["project"]["version"] in versions


def locked() -> dict[str, str]:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return {
        canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==([\w.+!-]+)", text, flags=re.M)
    }


def test_the_lock_names_no_address_and_every_entry_has_a_hash() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash)", text, flags=re.M), "an option for pip, such as an index"
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.M)[1:]
    assert len(entries) == len(locked())
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_every_direct_dependency_is_locked_at_a_version_that_fits() -> None:
    project = PROJECT["project"]
    declared = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    versions = locked()
    for requirement in map(Requirement, [*declared, *PROJECT["build-system"]["requires"]]):
        name = canonicalize_name(requirement.name)
        if name == project["name"]:
            continue  # an extra that names another one
        assert name in versions, name
        assert requirement.specifier.contains(versions[name]), f"{requirement} is locked at {versions[name]}"


def test_nothing_is_left_to_do_and_no_file_knows_this_machine() -> None:
    marks = ["TO" + "DO", "FIX" + "ME", "X" + "XX"]
    wrong = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        wrong += [f"{path.relative_to(ROOT)}: {mark}" for mark in marks if re.search(rf"\b{mark}\b", text)]
        wrong += [
            f"{path.relative_to(ROOT)}: {place}" for place in {str(ROOT), str(Path.home())} if f"{place}/" in text
        ]
    assert wrong == []
