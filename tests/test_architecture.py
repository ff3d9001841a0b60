"""The rooms import in one direction; the code itself is read, so that a lazy import counts as well."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hqp_lightning

PACKAGE = Path(hqp_lightning.__file__).parent
# What each room may import of this package, beside itself.
ALLOWED = {
    "errors": set(),
    "records": {"errors"},
    "core": {"records", "errors"},
    "surgery": {"core", "records", "errors"},
    "export": {"board", "core", "records", "errors"},
    "report": {"board", "core", "records", "errors"},
    "data": {"records", "errors"},
    "models": {"records", "errors"},
    "loop": {"surgery", "export", "report", "core", "records", "errors"},
    "search": {"loop", "surgery", "report", "core", "records", "errors"},
    "shipping": {"search", "loop", "surgery", "export", "report", "core", "board", "records", "errors"},
    "callbacks": {"shipping", "search", "loop", "surgery", "export", "report", "core", "records", "errors"},
    "looking": {
        "callbacks",
        "shipping",
        "search",
        "loop",
        "surgery",
        "export",
        "report",
        "core",
        "board",
        "records",
        "errors",
    },
    "look_command": {"looking", "app", "callbacks", "configs", "loop", "errors"},
    "standalone": {"shipping", "report", "export", "board", "core", "records", "errors"},
    "configs": {"records", "errors"},
    "sweeps": {"report", "core", "records", "errors"},
    "reproduce": {"report", "records", "errors"},
    "comparison": {"callbacks", "loop", "report", "records"},
    "app": {
        "comparison",
        "configs",
        "sweeps",
        "data",
        "models",
        "callbacks",
        "surgery",
        "export",
        "report",
        "core",
        "records",
        "errors",
    },
    "board": {"errors"},  # it runs alone on the board; what it does there, the export does here
    "__init__": {"looking", "callbacks", "surgery", "export", "report", "core", "records", "errors"},
}
LIGHTNING = {"lightning", "lightning_utilities", "pytorch_lightning", "lightning_fabric"}
LIGHTNING_ROOMS = {"callbacks", "shipping", "search", "loop", "app", "comparison", "data", "models"}
LIGHTNING_ROOMS |= {"looking", "look_command"}
RUNTIMES = {"openvino", "tensorrt", "tensorrt_rtx", "onnxruntime"}

FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [p.relative_to(PACKAGE).as_posix() for p in FILES]


def room(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(nodes):
    """Dotted names of what the nodes import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def everywhere(path):
    return set(imported(ast.walk(ast.parse(path.read_text(encoding="utf-8")))))


def at_top_level(path):
    """What runs on import: not the bodies of functions, and not what only a type checker reads."""

    def statements(body):
        for node in body:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                yield from statements(node.orelse)
            elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield node
                for part in ("body", "orelse", "finalbody"):
                    yield from statements(getattr(node, part, []))
                for handler in getattr(node, "handlers", []):
                    yield from statements(handler.body)

    return set(imported(statements(ast.parse(path.read_text(encoding="utf-8")).body)))


def packages(names):
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_point_one_way(path):
    here = room(path)
    assert here in ALLOWED, f"{here} is a new room: say in ALLOWED what it may import"
    own = {n.split(".")[1] for n in everywhere(path) if n.startswith("hqp_lightning.")}
    modules = {room(p) for p in FILES} - {"__init__"}
    assert (own & modules) - {here} <= ALLOWED[here]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_heavy_libraries_stay_where_they_belong(path):
    here, found = room(path), packages(everywhere(path))
    if here not in LIGHTNING_ROOMS:
        assert not found & LIGHTNING
    if path.relative_to(PACKAGE).as_posix() != "surgery/graph.py":
        assert "torch_pruning" not in found
    if here not in {"app", "comparison", "configs", "look_command", "sweeps", "reproduce"}:
        assert not found & {"hydra", "omegaconf"}
    if here in ("board", "errors"):
        assert found <= {*sys.stdlib_module_names, "hqp_lightning", "numpy", "tensorrt", "tensorrt_rtx", "PIL"}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_runtimes_are_imported_when_they_are_used(path):
    assert not packages(at_top_level(path)) & RUNTIMES


BOARD = [p for p in FILES if room(p) in ("board", "errors")]


@pytest.mark.parametrize("path", BOARD, ids=[p.name for p in BOARD])
def test_the_board_has_python_3_8(path):
    """JetPack 5. The grammar here; names of later standard libraries show where there is such a Python."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    future = "from __future__ import annotations" in source
    annotated = any(isinstance(n, (ast.AnnAssign, ast.FunctionDef)) for n in ast.walk(tree))
    assert future or not annotated, "annotations of later Pythons must not be evaluated"


@pytest.mark.skipif(shutil.which("python3.8") is None, reason="no python3.8 on this machine")
def test_the_board_compiles_on_python_3_8(tmp_path):
    code = "import sys; [compile(open(p, encoding='utf-8').read(), p, 'exec') for p in sys.argv[1:]]"
    done = subprocess.run(["python3.8", "-c", code, *BOARD], capture_output=True, text=True, check=False)
    if "pyenv" not in done.stderr:  # a shim that stands for no interpreter
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_modules_stay_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 220


def test_the_reader_sees_what_it_should(tmp_path):
    code = (
        "import a.b\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import c\n"
        "try:\n    from d.e import f\nexcept ImportError:\n    import g\n"
        "class H:\n    import i\n    def method(self):\n        import j\ndef k():\n    from m import n\n"
    )
    path = tmp_path / "code.py"
    path.write_text(code, encoding="utf-8")
    assert everywhere(path) == {"a.b", "typing.TYPE_CHECKING", "c", "d.e.f", "g", "i", "j", "m.n"}
    assert at_top_level(path) == {"a.b", "typing.TYPE_CHECKING", "d.e.f", "g", "i"}
