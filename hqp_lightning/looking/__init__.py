"""What pruning would cost a model, from one validation pass, before any training and with nothing changed."""

from hqp_lightning.looking.foretold import look

__all__ = ["look"]
