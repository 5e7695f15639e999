"""The documents: what they name exists, and the faults they list are those that the tests cover."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def marked_faults(path: Path) -> Iterator[str]:
    """The names in a test file's ``fault`` marks, and those that begin the names of its cases (``data-code: pickle``)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            yield from (name.value for name in node.args if isinstance(name, ast.Constant))
        elif isinstance(node, ast.Dict):
            names = [str(key.value) for key in node.keys if isinstance(key, ast.Constant)]
            yield from (name.partition(":")[0] for name in names if re.fullmatch("data-[a-z0-9-]+(: .+)?", name))


def test_the_faults_page_lists_the_faults_that_tests_cover(
    markdown_tables: Callable[[str], list[list[list[str]]]],
) -> None:
    covered = {str(path.relative_to(ROOT)): set(marked_faults(path)) for path in (ROOT / "tests").rglob("*.py")}
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = [row for table in markdown_tables(page) for row in table[1:]]
    assert sorted(row[0].strip("`") for row in rows) == sorted(set().union(*covered.values()))
    for name, _, _, files in rows:
        for file in re.findall("`([^`]+)`", files):
            assert name.strip("`") in covered.get(file, ()), f"docs/faults.md: {file} has no test of {name}"
