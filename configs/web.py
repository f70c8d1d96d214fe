"""Settings of the web page (`python -m web`)."""

from dataclasses import dataclass
from pathlib import Path

from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class WebConfig:
    """A page on which clips are dropped, watched while they become worlds, looked at and downloaded."""

    port: int = 8000
    """Port of the page; the next free one is taken if it is in use."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 lets every machine that reaches this one in: there is no password."""

    workspace: Path = Path("worlds")
    """Folder for uploads and results; earlier runs in it are listed."""

    max_upload_mb: int = 500
    """Largest clip that is taken, in megabytes."""

    max_queue: int = 20
    """Most jobs that may wait."""

    def __post_init__(self) -> None:
        for name in ("port", "max_upload_mb", "max_queue"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", "give at least 1")
