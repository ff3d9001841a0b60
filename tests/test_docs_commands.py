"""The commands and the YAML that the documentation shows, run page by page in their order."""

import functools
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest
import submitit
import yaml
from app import foreign
from board.conftest import exported  # noqa: F401
from pages import PAGES, ROOT, blocks, code, commands
from report import report_samples
from shell import NOT_RUN, PROGRAMS, build_without_training, run

from hqp_lightning import HQPPruning, Int8Export, app, comparison, reproduce
from hqp_lightning.board import cli
from hqp_lightning.report import write_json

LANGUAGES = {
    "bash": "run here",
    "text": "commands with their answers, run here",
    "yaml": "read here by what it is for",
    "python": "run in test_docs.py, those of supported.md in test_docs_supported.py",
}


@pytest.fixture
def folder(tmp_path, monkeypatch, request, imagenet_root, masks_root, cifar_root):
    """Where the reader stands: DATA in all layouts, an export folder, a recipe and an application of one's own."""
    for path in (*imagenet_root.iterdir(), *masks_root.iterdir(), imagenet_root):
        (tmp_path / path.name).symlink_to(path)
    work = tmp_path / "work"
    shutil.copytree(request.getfixturevalue("exported"), work / "deploy")
    (work / "deploy" / "pictures").symlink_to(imagenet_root / "val")
    write_json(report_samples.sample(), work / "deploy" / "report.json")
    (work / "DATA").symlink_to(tmp_path)
    (work / "recipes").symlink_to(app.RECIPE_DIR)
    (work / "my_configs" / "recipe").mkdir(parents=True)
    shutil.copy(app.RECIPE_DIR / "resnet18_digits.yaml", work / "my_configs" / "recipe" / "my_recipe.yaml")
    foreign.write(work / "src")
    monkeypatch.chdir(work)
    monkeypatch.setattr(app, "_fit", build_without_training)
    monkeypatch.setattr(app, "_dense_figures", lambda cfg, report: report_samples.CONTROL)
    monkeypatch.setattr(comparison, "compare", lambda cfg, report, build: None)
    in_this_process = functools.partial(submitit.AutoExecutor, cluster="debug")
    monkeypatch.setattr(submitit, "AutoExecutor", lambda cluster, **settings: in_this_process(**settings))
    return work


def shell(page):
    """The shell blocks of a page, and the commands within its lines."""
    for language, text in code(page):
        if language == "bash":
            yield text
        elif language is None and " " in text and text.split()[0] in {*PROGRAMS, *NOT_RUN}:
            yield text.replace("=NAME", "=resnet18_digits")


SLOW = ("docs/sweeps.md",)  # some twenty runs
SHELL = {str(page.relative_to(ROOT)): list(shell(page)) for page in PAGES}


@pytest.mark.filterwarnings("ignore:.*declarative_base")  # Optuna 2, as its sweeper needs it, on SQLAlchemy 2
@pytest.mark.parametrize("page", [pytest.param(p, marks=[pytest.mark.slow] * (p in SLOW)) for p in SHELL if SHELL[p]])
def test_commands_of_a_page_run(page, folder):
    for text in SHELL[page]:
        assert run(text) == 0


def test_commands_answer_what_is_shown(folder):
    for text in (text for page in PAGES for text in blocks(page, "text")):
        with redirect_stdout(StringIO()) as out, redirect_stderr(out):
            for command in re.findall(r"^\$ (.*)$", text, flags=re.MULTILINE):
                run(command)
        assert out.getvalue() == text


def a_configuration_of_ones_own_application(text, folder):
    (folder / "src" / "configs" / "callbacks" / "deploy.yaml").write_text(text)
    assert run("python src/train.py callbacks=deploy +paths.output_dir=here") == 0
    assert (folder / "here" / "deploy" / "model.int8.onnx").is_file()


def a_configuration_of_lightning_cli(text, folder, monkeypatch):
    from lightning.pytorch.cli import LightningCLI

    names = {}
    exec(foreign.TRAIN, names)
    (folder / "cli.yaml").write_text(text)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own calls of jsonargparse
    monkeypatch.setattr("sys.argv", ["train.py"])
    read = LightningCLI(names["Net"], names["Data"], run=False, save_config_callback=None, args=["--config=cli.yaml"])
    assert {HQPPruning, Int8Export} <= {type(callback) for callback in read.trainer.callbacks}


def published_figures(text, folder):
    (folder / "published.yaml").write_text(text)
    held = reproduce.read_published(folder / "published.yaml")
    assert run("hqp recipe=resnet18_digits " + " ".join(held["overrides"])) == 0
    assert reproduce.compare(report_samples.sample(), held["figures"])


@pytest.mark.filterwarnings("ignore:Starting from v1.9.0")  # TensorBoard is optional
def test_yaml_is_read_by_what_it_is_for(folder, monkeypatch):
    readers = {
        "defaults": a_configuration_of_ones_own_application,
        "trainer": functools.partial(a_configuration_of_lightning_cli, monkeypatch=monkeypatch),
        "figures": published_figures,
    }
    for text in (text for page in PAGES for text in blocks(page, "yaml")):
        (reader,) = (readers[key] for key in yaml.safe_load(text) if key in readers)
        reader(text, folder)


def test_the_usage_of_hqp_engine_is_that_of_its_parser():
    texts = [text for language, text in code(ROOT / "docs" / "jetson.md") if language is None and " " in text]
    usages = [re.sub(r"[][]|\|\S*", "", t) for t in texts if t.split()[0] in ("build", "bench", "inspect", "check")]
    assert len(usages) == 4
    for usage in usages:
        cli._parser().parse_args(usage.replace(" N", " 1").split())


def test_all_code_is_of_a_language_and_a_program_that_something_runs():
    used, languages = set(), set()
    for page in PAGES:
        found = [(language, text) for language, text in code(page) if language is not None]
        fences = re.findall(r"^[ >]*(?:```|~~~)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert len(fences) == 2 * len(found), f"{page}: a fence that is not read"
        for language, text in found:
            assert language in LANGUAGES, f"{page}: nothing runs {language!r}:\n{text}"
            assert language != "text" or text.startswith("$ "), f"{page}: no command and its answer:\n{text}"
            languages.add(language)
            if language == "bash":
                used |= {next(w for w in words if not w.startswith("PYTHONPATH=")) for words in commands(text)}
    assert languages == set(LANGUAGES)
    assert used <= {*PROGRAMS, *NOT_RUN}, "add it to shell.PROGRAMS, or with the reason to shell.NOT_RUN"
    assert used >= set(NOT_RUN)
