"""Packages of optional backends: installed ones, or else source checkouts below `third_party/`, which need no installing."""

import importlib.util
import sys
from pathlib import Path

CHECKOUTS = Path(__file__).resolve().parents[1] / "third_party"
_SOURCES = ("src", ".", "bindings/torch")  # where a checkout may have its packages


def available(package: str, compiled: str | None = None) -> bool:
    """Whether a top-level package can be imported; where only a checkout has it, that is put at the end of `sys.path` first.

    Args:
        package: its name.
        compiled: pattern of a file beside it that has to be built first, without which a checkout does not count.
    """
    if package in sys.modules or importlib.util.find_spec(package) is not None:
        return True
    if not CHECKOUTS.is_dir():
        return False
    for checkout in sorted(CHECKOUTS.iterdir()):
        for sources in (checkout / part for part in _SOURCES):
            if any((sources / package).glob("*.py")) and (compiled is None or any(sources.glob(compiled))):
                sys.path.append(str(sources))
                importlib.invalidate_caches()
                return True
    return False
