"""What can go wrong, by whom it is to be mended."""

__all__ = ["ConfigurationError", "ExportError", "HQPError", "LoaderError", "SurgeryError"]


class HQPError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigurationError(HQPError, ValueError):
    """An argument, a configuration or a model that cannot work; raised before any training."""


class SurgeryError(HQPError, RuntimeError):
    """A structural change that would break the model; the model is left as it was."""


class ExportError(HQPError, RuntimeError):
    """An artifact that could not be written, built or run."""


class LoaderError(HQPError, RuntimeError):
    """The user's loader failed to give a batch."""
