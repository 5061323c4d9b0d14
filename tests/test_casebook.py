"""The casebook and the tests agree, both ways."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.casebook import CASES

TESTS = Path(__file__).parent
BY_ID = {case.id: case for case in CASES}


def citations() -> Iterator[tuple[str, str]]:
    """``(id, where)`` for every ``@pytest.mark.case(…)`` on a test function."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for decorator in node.decorator_list:
                    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.case":
                        for argument in decorator.args:
                            yield ast.literal_eval(argument), f"{path.relative_to(TESTS)}::{node.name}"


def test_every_entry_has_an_id_of_its_own() -> None:
    assert len(BY_ID) == len(CASES)


def test_every_entry_that_is_built_is_proved_by_a_test() -> None:
    proved = {id_ for id_, _ in citations()}
    assert [case.id for case in CASES if not case.planned and case.id not in proved] == []


def test_every_cited_id_exists_and_is_not_planned_any_more() -> None:
    wrong = [f"{id_} in {where}" for id_, where in citations() if id_ not in BY_ID or BY_ID[id_].planned]
    assert wrong == []
