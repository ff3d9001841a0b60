import pytest
from omegaconf import OmegaConf
from test_pareto import report

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.report import write_json
from hqp_lightning.sweeps import Found, find_earlier, note_failure, note_settings


def config(folder, **values):
    settings = {"hqp": {"max_drop": 0.01}, "export": {"dirpath": "${output_dir}/deploy"}, "trainer": {"max_epochs": 3}}
    return OmegaConf.create({**settings, "resume": True, "output_dir": str(folder), "ckpt_path": None, **values})


def test_an_empty_folder_has_nothing(tmp_path):
    assert find_earlier(config(tmp_path)) == Found()
    assert find_earlier(config(tmp_path / "nowhere")) == Found()


def test_the_newest_checkpoint_of_training_is_found(tmp_path):
    import os

    note_settings(config(tmp_path))
    results = ["deploy/pruned.ckpt", "control/c.ckpt", "comparison/checkpoints/d.ckpt"]  # not of the training
    for i, name in enumerate(["metrics/checkpoints/b.ckpt", "metrics/checkpoints/a.ckpt", *results]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (i, i))
    assert find_earlier(config(tmp_path)) == Found(checkpoint=tmp_path / "metrics/checkpoints/a.ckpt")


def test_a_finished_run_is_read(tmp_path):
    note_settings(config(tmp_path, resume=False))
    (tmp_path / "deploy").mkdir()
    write_json(report(0.94), tmp_path / "deploy" / "report.json")
    assert find_earlier(config(tmp_path, control=True)) == Found(report=report(0.94))


def test_a_folder_of_other_settings_is_refused(tmp_path):
    note_settings(config(tmp_path))
    with pytest.raises(ConfigurationError, match=r"other settings \(hqp\.max_drop: 0\.01 there, 0\.02 now\)"):
        find_earlier(config(tmp_path, hqp={"max_drop": 0.02}))


def test_a_new_start_forgets_the_failure(tmp_path):
    note_failure(tmp_path, ValueError("x"))
    assert (tmp_path / "failure.json").is_file()
    note_settings(config(tmp_path))
    assert not (tmp_path / "failure.json").exists()
