import pytest
from omegaconf import OmegaConf

from hqp_lightning.configs import check_values
from hqp_lightning.errors import ConfigurationError

PRUNING = {"_target_": "hqp_lightning.HQPPruning", "_convert_": "all", "monitor": "val_acc", "max_drop": 0.015}


def checked(**values):
    check_values(OmegaConf.create({"hqp": {**PRUNING, **values}}))


def test_what_fits_passes():
    checked(ignore=["a", "b"], target_macs=None, baseline=1, start_epoch="???", step="${nowhere}", min_step=0.01)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_drop": "abc"}, r"hqp\.max_drop is 'abc' \(str\); expected float"),
        ({"max_drop": True}, r"hqp\.max_drop is True \(bool\); expected float"),
        ({"round_to": 8.5}, r"hqp\.round_to is 8\.5 \(float\); expected int"),
        ({"target_macs": "half"}, r"hqp\.target_macs is 'half' \(str\); expected float or null"),
        ({"monitor": 3}, r"hqp\.monitor is 3 \(int\); expected str"),
        ({"ignore": "layer1"}, r"hqp\.ignore is 'layer1' \(str\); expected list of str"),
        ({"ignore": [1]}, r"hqp\.ignore is \[1\] \(list\); expected list of str"),
        ({"max_dorp": 0.1}, r"hqp\.max_dorp is unknown; did you mean hqp\.max_drop\?"),
        ({"zzzz": 0.1}, r"hqp\.zzzz is unknown: there are monitor, max_drop, mode, "),
    ],
)
def test_what_does_not_fit_is_named_with_what_was_expected(values, message):
    with pytest.raises(ConfigurationError, match=message):
        checked(**values)


def test_all_problems_are_told_at_once_also_of_nested_nodes():
    net = {"_target_": "hqp_lightning.models.build_network", "name": "resnet18", "num_clases": 3, "weights": 1}
    teacher = {"_target_": "hqp_lightning.models.Teacher", "net": {**net, "num_classes": "ten"}}
    model = {"_target_": "hqp_lightning.models.ImageClassifier", "net": net, "teachers": ["???", teacher]}
    cfg = OmegaConf.create({"hqp": {**PRUNING, "max_drop": "x"}, "model": model})
    with pytest.raises(ConfigurationError) as caught:
        check_values(cfg)
    message = str(caught.value)
    assert "hqp.max_drop is 'x'" in message
    assert "model.net.num_clases is unknown; did you mean model.net.num_classes?" in message
    assert "model.net.weights is 1 (int); expected str or null" in message
    assert "model.teachers[1].net.num_classes is 'ten' (str); expected int" in message


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("hqp_lightning.models.Techer", r"there is no .*Techer; did you mean hqp_lightning\.models\.Teacher\?$"),
        ("hqp_lightning.modles.Teacher", r"Error loading 'hqp_lightning\.modles\.Teacher'.*ModuleNotFoundError"),
        ("hqp_lightning.HQPPrunning", r"there is no .*; did you mean hqp_lightning\.HQPPruning\?$"),
        ("Teacher", r"Error loading 'Teacher'.*ModuleNotFoundError"),
        ("hqp_lightning..Teacher", "Error loading"),
        ("", "Empty path"),
        (3, "3 is no dotted path$"),
    ],
)
def test_a_target_that_is_not_there_is_told_before_anything_is_loaded(target, message):
    cfg = OmegaConf.create({"model": {"teachers": [{"_target_": target, "any": 1}]}})
    with pytest.raises(ConfigurationError, match=r"^model\.teachers\[0\]\._target_: " + message):
        check_values(cfg)


def test_the_trainer_is_checked_by_its_own_signature():
    trainer = {"_target_": "lightning.Trainer", "max_epochs": "ten", "precision": "32-true", "limit_val_batches": 0.5}
    with pytest.raises(ConfigurationError, match=r"^trainer\.max_epochs is 'ten' \(str\); expected int or null$"):
        check_values(OmegaConf.create({"trainer": trainer}))


def test_a_target_that_takes_any_name_is_left_alone():
    check_values(OmegaConf.create({"x": {"_target_": "builtins.dict", "anything": 1}}))


def test_a_target_that_cannot_be_resolved_yet_is_left_alone():
    check_values(OmegaConf.create({"x": {"_target_": "${nowhere}", "any": 1}}))


def test_interpolated_values_are_checked_as_what_they_stand_for():
    cfg = OmegaConf.create({"budget": "wide", "hqp": {**PRUNING, "max_drop": "${budget}"}})
    with pytest.raises(ConfigurationError, match="hqp.max_drop is 'wide'"):
        check_values(cfg)
