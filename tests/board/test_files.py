"""What a process leaves that was killed while it wrote."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hqp_lightning.board.files import write_whole
from hqp_lightning.shipping.demands import check_folder

KILLED = """
import os, signal, sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
spec = spec_from_file_location("files", sys.argv[1])
files = module_from_spec(spec)
sys.modules["hqp_lightning.errors"] = type("Errors", (), {"ExportError": OSError})
spec.loader.exec_module(files)
files.write_whole(Path(sys.argv[2]), b"half")
"""
FILES = Path(sys.modules[write_whole.__module__].__file__)


@pytest.mark.parametrize("way", ["the next write", "the next run"])
def test_parts_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path, way):
    engine = tmp_path / "engines" / "model.int8.engine"
    engine.parent.mkdir()
    engine.write_bytes(b"of an earlier run")
    code = subprocess.run([sys.executable, "-S", "-c", KILLED, str(FILES), str(engine)], check=False).returncode
    assert code == -9
    (left,) = engine.parent.glob(".*.part")
    living = engine.with_name(f".model.onnx.{os.getppid()}.part")
    living.touch()
    other = engine.with_name(".the.users.part")
    other.touch()
    if way == "the next write":
        write_whole(engine.with_name("other.json"), b"{}")
    else:
        check_folder(tmp_path)
    assert not left.exists()
    assert living.exists()
    assert other.exists()
    assert engine.read_bytes() == b"of an earlier run"
