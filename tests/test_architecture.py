"""The rooms import in one direction; the code itself is read, so that a lazy import counts as well."""

import ast
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
    "export": {"core", "records", "errors"},
    "report": {"core", "records", "errors"},
    "data": {"records", "errors"},
    "models": {"records", "errors"},
    "callbacks": {"surgery", "export", "report", "core", "records", "errors"},
    "configs": {"records", "errors"},
    "sweeps": {"report", "core", "records", "errors"},
    "reproduce": {"report", "records", "errors"},
    "app": {
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
    "board": {"export", "report", "core", "records", "errors"},
    "__init__": {"callbacks", "surgery", "export", "report", "core", "records", "errors"},
}
LIGHTNING = {"lightning", "lightning_utilities", "pytorch_lightning", "lightning_fabric"}
LIGHTNING_ROOMS = {"callbacks", "app", "data", "models"}
RUNTIMES = {"openvino", "tensorrt", "onnxruntime"}

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
    if here not in {"app", "configs", "sweeps", "reproduce"}:
        assert not found & {"hydra", "omegaconf"}
    if here == "board":
        assert not found & {"torch", *LIGHTNING}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_runtimes_are_imported_when_they_are_used(path):
    assert not packages(at_top_level(path)) & RUNTIMES


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_modules_stay_small(path):
    if path.name == "records.py":
        return  # a list of facts, without code
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
