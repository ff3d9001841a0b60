"""Lets any Hydra application select ``callbacks: hqp/default``.

Every Hydra application on the machine imports this, so it must stay light.
"""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

__all__ = ["HQPSearchPathPlugin"]


class HQPSearchPathPlugin(SearchPathPlugin):
    """Appends the group ``callbacks/hqp``; it stands last, so an application's own files of that name win."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra calls this before it composes anything."""
        own = [Path(p.path.removeprefix("file://")) / "hqp" / "none.yaml" for p in search_path.get_path() if p.path]
        if any(path.is_file() for path in own):
            return  # the hqp command itself: its groups are hqp and export
        search_path.append(provider="hqp-lightning", path=f"file://{Path(__file__).parent / 'conf'}")
