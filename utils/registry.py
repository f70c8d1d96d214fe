"""A family of interchangeable backends: names map to `"module:Class"` and are imported only when asked for."""

import importlib
from typing import Any

from utils.errors import MissingDependencyError, UnknownBackendError


class Registry:
    """Lazy `name -> class` table of one backend family.

    Args:
        family: what the backends do, used in messages.
        entries: name = "module:Class".
    """

    def __init__(self, family: str, **entries: str):
        self.family = family
        self._entries = dict(entries)

    def names(self) -> list[str]:
        """Sorted names."""
        return sorted(self._entries)

    def register(self, name: str, target: str) -> None:
        """Adds or replaces an entry; plug-ins and tests use this."""
        self._entries[name] = target

    def load(self, name: str) -> Any:
        """The class registered under `name`.

        Raises:
            UnknownBackendError: no such name.
            MissingDependencyError: its package is not installed.
        """
        if name not in self._entries:
            raise UnknownBackendError(f"{self.family} '{name}' is unknown", f"choose one of: {', '.join(self.names())}")
        module, _, attribute = self._entries[name].partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"{self.family} '{name}' needs the package '{error.name}', which is not installed",
                "install the matching extra (see 'Backends' in README.md) or choose another: " + ", ".join(self.names()),
            ) from error
