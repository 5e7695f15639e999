"""The documents: what they link to and name exists, their commands parse, and the faults they list are those that tests cover."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from goemotions.cli.main import commands
from pipelines import training

ROOT = Path(__file__).parents[1]
# Written by commands of the project and tested there; the changelog has former names.
GENERATED = {"model-performance.md", "dataset-analysis.md", "benchmarks.md", "serving-benchmarks.md", "CHANGELOG.md"}
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
WRITTEN = [page for page in PAGES if page.name not in GENERATED]
IDS = {"ids": lambda page: str(page.relative_to(ROOT))}
FENCE = re.compile(r"^( *)```([a-z]*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
# Files that may read a variable of a make command.
READERS = MAKEFILE + (ROOT / "images" / "image.sh").read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def code(page: Path) -> list[str]:
    """The commands in a page's shell blocks, fenced or indented, continued lines joined; and its inline code."""
    text = page.read_text(encoding="utf-8")
    blocks = [block for _, language, block in FENCE.findall(text) if language in ("", "bash")]
    blocks += ["\n".join(re.findall(r"^    (.+)$", FENCE.sub("", text), re.MULTILINE))]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return lines + [inline.replace("\n", " ") for inline in re.findall(r"(?<!`)`([^`]+)`(?!`)", FENCE.sub("", text))]


def invocations(page: Path, name: str) -> Iterator[list[str]]:
    """The arguments of each call of a command on a page."""
    for line in code(page):
        if not re.search(rf"(^|[;&] ?){name} ", line):
            continue
        words = shlex.split(line.replace("<", "").replace(">", ""), comments=True)
        while name in words:
            words = words[words.index(name) + 1 :]
            end = next((i for i, word in enumerate(words) if word.endswith(";") or word == "&&"), len(words))
            arguments = [word.rstrip(";") for word in words[: end + 1] if word != "&&"]
            yield arguments
            words = words[end + 1 :]


@pytest.mark.parametrize("page", PAGES, **IDS)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(linked), f"{linked.name} has no heading for #{anchor}"


@pytest.mark.parametrize("page", WRITTEN, **IDS)
def test_files_that_a_page_names_exist(page: Path) -> None:
    for name in re.findall(
        r"`((?:goemotions|components|pipelines|images|manifests|benchmarks|tests|docs)/[\w./*-]*)`", prose(page)
    ):
        assert list(ROOT.glob(name.rstrip("/"))), f"{name} does not exist"


@pytest.mark.parametrize("page", WRITTEN, **IDS)
def test_make_commands_name_targets_and_variables_of_the_makefile(page: Path) -> None:
    for arguments in invocations(page, "make"):
        for word in arguments:
            name, assigned, value = word.partition("=")
            if assigned:
                assert re.search(rf"\b{name}\b", READERS), f"nothing reads {name}"
                if name == "SET":
                    parameter = value.partition("=")[0]
                    assert parameter in parameters() or parameter in ("name", "parameter"), f"no pipeline has {parameter}"
            elif not word.startswith("-"):
                assert re.search(rf"^{word}:", MAKEFILE, re.MULTILINE), f"there is no target {word}"


def parameters() -> set[str]:
    """The parameters of the pipelines, by the signatures in their source."""
    names: set[str] = set()
    for module in (training, importlib.import_module("pipelines.scoring")):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                names |= {argument.arg for argument in node.args.args}
    return names


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that pyproject.toml adds to the command line; those of the installed package may be older."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("entry-points", {})
    points = [EntryPoint(name, value, group) for group, named in groups.items() for name, value in named.items()]
    monkeypatch.setattr("goemotions.cli.main._plugins", lambda: points, raising=False)


def parse(command: click.Command, arguments: list[str], parent: click.Context | None = None) -> None:
    """Parses arguments without running the command; unknown options and missing values raise."""
    if isinstance(command, click.Group):
        context = click.Context(command, parent, info_name=command.name)
        assert arguments, f"{command.name} needs a subcommand"
        if arguments[0].startswith("-") or arguments[0].startswith("..."):
            return
        child = command.get_command(context, arguments[0])
        assert child, f"{context.command_path} has no command {arguments[0]}"
        parse(child, arguments[1:], context)
    elif "--help" not in arguments and arguments:
        command.make_context(command.name, arguments, parent)


@pytest.mark.parametrize("page", WRITTEN, **IDS)
@pytest.mark.usefixtures("plugins")
def test_commands_parse(page: Path) -> None:
    for arguments in invocations(page, "goemotions"):
        if arguments[0] not in ("...", "command"):
            parse(commands, arguments)


def test_benchmarks_have_the_options_that_commands_give_them() -> None:
    texts = [page.read_text(encoding="utf-8") for page in (*PAGES, *(ROOT / "benchmarks").glob("*.py"))]
    for name, arguments in re.findall(r"python -m benchmarks\.(\w+)([^`;&|#\n]*)", "\n".join([*texts, MAKEFILE])):
        # Importing all of them takes as long as torch and transformers do.
        sources = (ROOT / "benchmarks" / f"{module}.py" for module in (name, "measuring"))
        known = {option for source in sources for option in re.findall(r'"(--[\w-]+)"', source.read_text(encoding="utf-8"))}
        assert set(re.findall(r"--[\w-]+", arguments)) <= known | {"--model-name"}, f"benchmarks.{name}: {arguments}"


@pytest.mark.parametrize("page", WRITTEN, **IDS)
def test_python_blocks_are_valid_and_import_what_exists(page: Path) -> None:
    for _, language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("goemotions"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


def test_the_maps_of_the_code_name_what_is_there(markdown_tables: Callable[[str], list[list[list[str]]]]) -> None:
    tables = markdown_tables((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    reading, changing = (next(table for table in tables if title in table[0]) for title in ("minutes", "what"))
    assert len(reading) > 10
    assert len(changing) > 40
    for _, files, names, *_ in (*reading[1:], *changing[1:]):
        folder, sources = ROOT, ""
        for file in re.findall("`([^`]+)`", files):
            # A file without a folder is in that of the one before it, or in a folder of its room.
            path = next(one for one in (ROOT / file, folder / file, folder.parent / file) if one.exists())
            folder = path.parent
            sources += "".join(one.read_text(encoding="utf-8") for one in (path.glob("*.py") if path.is_dir() else [path]))
        for name in re.findall(r"`([\w.]+)`", names):
            assert re.search(rf"\b{name.rpartition('.')[2]}\b", sources), f"{files} has no {name}"


def test_the_site_has_every_page_once() -> None:
    listed = re.findall(r"(?:: |- )(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)


@pytest.mark.usefixtures("plugins")
def test_the_readme_shows_the_help_as_it_is() -> None:
    blocks = [
        block for _, language, block in FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8")) if language == "text"
    ]
    shown = [line for block in blocks for line in block.splitlines() if line.startswith("  ") and line.strip() != "..."]
    assert shown
    assert set(shown) <= set(CliRunner().invoke(commands, ["--help"]).output.splitlines())


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120


def marked_faults(path: Path) -> Iterator[str]:
    """The names in a test file's ``fault`` marks, and those that begin its cases (``data-code: pickle``, ``attack-tls``)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            yield from (name.value for name in node.args if isinstance(name, ast.Constant))
        elif isinstance(node, ast.Dict):
            names = [str(key.value) for key in node.keys if isinstance(key, ast.Constant)]
            yield from (name.partition(":")[0] for name in names if re.fullmatch("(data|attack)-[a-z0-9.-]+(: .+)?", name))


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
