import pytest

from hqp_lightning import app
from hqp_lightning.configs import check_overrides, offer_timm
from hqp_lightning.errors import ConfigurationError


def check(*arguments):
    check_overrides(arguments, app.CONFIG_DIR)


@pytest.mark.parametrize(
    "arguments",
    [
        ["hqp.max_drop=0.1", "model.net.bn_momentum=0.1", "data.seed=3", "seed=1"],
        ["-m", "hqp.max_drop=0.1,0.2", "model=resnet18,mobilenetv3_small", "hydra.sweep.dir=somewhere"],
        ["+trainer.limit_test_batches=2", "hqp=none", "~logger", "export.engines=[onnxruntime]"],
        ["hqp.max_drop=interval(0.001,0.1)", "data.root=/a/b=c"],
        ["~model.teachers={_target_:x}"],
        ["model=timm/resnet10t", "model.net.name=x"],
    ],
)
def test_what_hydra_takes_passes(arguments):
    offer_timm(arguments, app.CONFIG_DIR)
    check("recipe=resnet18_imagenette", *arguments)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("hqp.max_dorp=0.1", r"^hqp\.max_dorp is unknown; did you mean hqp\.max_drop\?$"),
        ("max_drop=0.1", r"^max_drop is unknown; did you mean export\.max_drop\?$|did you mean hqp\.max_drop\?$"),
        ("hpq.max_drop=0.1", r"did you mean hqp\.max_drop\?"),
        ("hqp.max_dorp=0.1,0.2", r"did you mean hqp\.max_drop\?"),
        ("modle=resnet18", r"^modle is unknown; did you mean model\?$"),
        ("model=resnet81", r"^no model=resnet81; did you mean resnet18\? There are .*mobilenetv3_small"),
        ("hqp=nune", r"^no hqp=nune; did you mean none\?"),
        ("hqp.qqqq=1", r"^hqp\.qqqq is unknown$"),
        ("trainer.limit_test_batches=2", r"add it with \+trainer\.limit_test_batches=\.\.\.$"),
        ("model.teachers={_target_:x}", r"^model\.teachers is a list, also of one: model\.teachers=\[\{\.\.\.\}\]$"),
        ("trainer.limit_tset_batches=2", r"did you mean trainer\.limit_test_batches\?$"),
    ],
)
def test_what_was_meant_is_named(argument, message):
    with pytest.raises(ConfigurationError, match=message):
        check("recipe=resnet18_digits", argument)


def test_the_recipes_are_listed_where_none_is_given():
    with pytest.raises(ConfigurationError, match=r"hqp recipe=NAME, NAME one of .*resnet18_digits"):
        check("hqp.max_drop=0.1")
    with pytest.raises(ConfigurationError, match=r"no recipe=resnet18_digit; did you mean resnet18_digits\?"):
        check("recipe=resnet18_digit")


def test_other_configurations_and_broken_grammar_are_left_to_hydra():
    check("--config-dir=mine", "recipe=of_mine", "new.key=1")
    check("recipe=resnet18_digits", "hqp.max_drop=[1,")
