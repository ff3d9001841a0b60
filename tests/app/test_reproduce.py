import dataclasses
import itertools
import re

import pytest
import yaml

from hqp_lightning import app, reproduce
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import Budget, ModelFigures, Report
from hqp_lightning.report import write_json

PUBLISHED = sorted((app.RECIPE_DIR / "published").glob("*.yaml"))


def _report(**changes):
    dense = ModelFigures(accuracy=0.95, macs=100.0, params=10, file_bytes=40)
    int8 = dataclasses.replace(dense, accuracy=0.94, macs=25.0, file_bytes=4)
    report = Report(Budget(0.015, "val_acc"), dense, int8, int8, True, 0.01, 0.9, 0.75, None)
    return dataclasses.replace(report, **changes)


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "published").mkdir()
    (tmp_path / "r.yaml").write_text("# a recipe")
    figures = {
        "int8.accuracy": {"published": 0.945, "at_least": 0.93},
        "accuracy_drop": {"published": 0.005, "at_most": 0.015},
        "macs_reduction": {"published": 0.7, "at_least": 0.6, "at_most": 0.8},
    }
    (tmp_path / "published" / "r.yaml").write_text(yaml.safe_dump({"hardware": "a board", "figures": figures}))
    return tmp_path


def _run(recipe, report):
    write_json(report, recipe / "report.json")
    return reproduce.main([str(recipe / "r.yaml"), "--report", str(recipe / "report.json")])


def test_figures_that_hold(recipe, capsys):
    assert _run(recipe, _report()) == 0
    out = capsys.readouterr().out
    assert "a board" in out
    assert out.count("holds") == 3
    line = next(x for x in out.splitlines() if x.startswith("int8.accuracy")).split()
    assert line == ["int8.accuracy", "0.9450", ">=", "0.9300", "0.9400", "holds"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"accuracy_drop": 0.016}, "accuracy_drop"),
        ({"macs_reduction": 0.81}, "macs_reduction"),
        ({"macs_reduction": 0.59}, "macs_reduction"),
        ({"int8": ModelFigures(0.92, 1.0, 1, 1)}, "int8.accuracy"),
    ],
)
def test_a_figure_that_does_not_hold_fails_and_is_marked(recipe, capsys, changes, name):
    assert _run(recipe, _report(**changes)) == 1
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.endswith("DOES NOT HOLD")]
    assert line.split()[0] == name


def test_a_figure_that_was_not_measured_does_not_hold():
    (comparison,) = reproduce.compare(_report(), {"speedup": {"published": 2.0, "at_least": 1.0}})
    assert comparison.measured is None
    assert not comparison.holds


def test_what_is_no_figure_is_refused():
    for name in ("int8.acuracy", "nothing", "budget.monitor"):
        with pytest.raises(ConfigurationError, match=name):
            reproduce.compare(_report(), {name: {"published": 1.0, "at_least": 0.0}})


NO_FIGURES = [{"published": 1}, {"at_least": 1}, {"published": 1, "least": 1}, 3, {"published": "x", "at_most": 1}]


@pytest.mark.parametrize("figure", NO_FIGURES)
def test_figures_without_bounds_are_refused(tmp_path, figure):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"figures": {"speedup": figure}}))
    with pytest.raises(ConfigurationError, match="speedup is"):
        reproduce.read_published(tmp_path / "p.yaml")


def test_the_run_is_the_command_of_the_recipe(recipe, monkeypatch, tmp_path):
    asked = []

    def run(name, overrides):
        asked.append((name, overrides))
        write_json(_report(), tmp_path / "made.json")
        return tmp_path / "made.json"

    monkeypatch.setattr(reproduce, "_run", run)
    assert reproduce.main([str(recipe / "r.yaml"), "data.root=DATA"]) == 0
    assert asked == [("r", ["data.root=DATA"])]


def test_unknown_and_unpublished_recipes_are_told(recipe, capsys):
    assert reproduce.main(["nope"]) == 2
    assert "no recipe nope; published are mobilenetv3_small_digits, " in capsys.readouterr().err
    (recipe / "published" / "r.yaml").unlink()
    assert reproduce.main([str(recipe / "r.yaml")]) == 2
    assert "nothing is published for this recipe" in capsys.readouterr().err


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.stem)
def test_published_figures_hold_themselves(path):
    """Each file reads, names figures of a report, belongs to a recipe, and publishes what is within its own bounds."""
    published = reproduce.read_published(path)
    assert (app.RECIPE_DIR / path.name).is_file()
    for name, figure in published["figures"].items():
        reproduce.compare(_report(), {name: figure})
        assert reproduce.Comparison(name, measured=figure["published"], **figure).holds


def _in_the_page(recipe):
    """The figures of the first table below ``## recipe`` in recipes/README.md, as a report would have them."""
    page = (app.RECIPE_DIR / "README.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {recipe}\n")[1].split("\n## ")[0]
    table = itertools.takewhile(lambda x: x.startswith("|"), section[section.index("| ") :].splitlines())
    lines = [[c.strip() for c in x.strip("|").split("|")] for x in table]
    rows = {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}

    def number(row, column):
        value, _, unit = rows[row][column].partition(" ")
        return float(value) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "kB": 1e3, "MB": 1e6}[unit]

    return {
        "int8.accuracy": number("INT8", "val_acc"),
        "accuracy_drop": number("INT8", "drop"),
        "int8.holdout_accuracy": number("INT8", "held-out"),
        "macs_reduction": 1 - number("INT8", "MACs") / number("dense", "MACs"),
        "size_reduction": 1 - number("INT8", "ONNX size") / number("dense", "ONNX size"),
        "speedup": float(re.match(r"[\d.]+", rows["INT8"]["speedup"])[0]),
    }


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.stem)
def test_published_figures_are_those_of_the_page(path):
    page = _in_the_page(path.stem)
    for name, figure in reproduce.read_published(path)["figures"].items():
        # Three digits of both numbers in the page: each may be off by half a per cent, at worst in opposite directions.
        rounding = 0.01 * (1 - page[name]) if name in ("macs_reduction", "size_reduction") else 1e-9
        assert figure["published"] == pytest.approx(page[name], abs=rounding), name
