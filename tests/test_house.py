"""Rules of the house that no linter knows."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import seqloom
from seqloom.cli.main import VERBS

PACKAGE = Path(seqloom.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "base", "shared", "stuff"}
CODE_FROM_DATA = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
HEAVY = {"torch", "numpy", "pydantic", "yaml", "safetensors", "tokenizers", "transformers", "pyarrow"}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_no_drawer_for_odds_and_ends() -> None:
    named = [path for path in PACKAGE.rglob("*") if path.stem in DRAWERS]
    assert named == []


def test_init_files_hold_a_docstring_only() -> None:
    for path in SOURCES:
        if path.name == "__init__.py" and path.parent != PACKAGE:
            tree = parsed(path)
            assert ast.get_docstring(tree), path
            assert len(tree.body) == 1, path


def test_every_module_opens_with_its_idea() -> None:
    assert [path for path in SOURCES if not ast.get_docstring(parsed(path))] == []


def test_nothing_runs_code_from_data() -> None:
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & CODE_FROM_DATA, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in CODE_FROM_DATA, path
            elif isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"eval", "exec", "torch.load", "torch.save"}, (path, node.lineno)
            elif isinstance(node, ast.keyword):
                assert node.arg != "trust_remote_code", path


def test_light_commands_load_no_heavy_package() -> None:
    """One process says them all: what one command loads is loaded for those after it."""
    commands = [["--help"], ["--version"], ["list"], *([verb, "--help"] for verb in VERBS)]
    script = f"""if True:
        import contextlib, io, sys
        from seqloom.cli.main import main
        for command in {commands!r}:
            with contextlib.redirect_stdout(io.StringIO()) as said:
                try:
                    main(command)
                except SystemExit as stop:
                    assert not stop.code, (command, stop.code)
            loaded = {HEAVY!r} & set(sys.modules)
            assert said.getvalue() and not loaded, (command, loaded)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_import_seqloom_loads_no_heavy_package() -> None:
    script = f"import sys, seqloom; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
