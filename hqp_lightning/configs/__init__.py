"""Checks of a configuration, before anything is loaded: the command line's keys, and the values' types."""

from hqp_lightning.configs.choices import offer_recipes, offer_timm
from hqp_lightning.configs.failing import cause, fail
from hqp_lightning.configs.keys import check_overrides
from hqp_lightning.configs.values import check_values

__all__ = ["cause", "check_overrides", "check_values", "fail", "offer_recipes", "offer_timm"]
