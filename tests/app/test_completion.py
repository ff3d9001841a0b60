"""Tab completion in a real bash: what `eval "$(hqp -sc install=bash)"` puts there is called as a tab would call it."""

import os
import shutil
import subprocess
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

from hqp_lightning import app

# What readline sets before it calls the function that `complete -F` named.
TAB = """
COMP_LINE="$1" COMP_POINT=${#1}; read -ra COMP_WORDS <<< "$1"; COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
function=$(complete -p hqp); function=${function##*-F }; ${function% hqp}
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
def test_bash_completes_recipes_and_keys(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hqp", "-sc", "install=bash"])
    app.main()
    installed = capsys.readouterr().out
    GlobalHydra.instance().clear()
    command = tmp_path / "hqp"
    start = "import sys; from hqp_lightning.app import main; sys.argv[0] = 'hqp'; main()"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{start}" "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    paths = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(app.CONFIG_DIR.parent)}

    def tab(line):
        script = ["bash", "--norc", "-c", installed + TAB, "bash", line]
        done = subprocess.run(script, env={**os.environ, **paths}, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    recipes = sorted(f"recipe={path.stem}" for path in app.RECIPE_DIR.glob("resnet18*.yaml"))
    assert len(recipes) > 2
    assert sorted(tab("hqp recipe=res")) == recipes
    assert "hqp.max_drop=" in tab("hqp recipe=resnet18_digits hqp.max_")
