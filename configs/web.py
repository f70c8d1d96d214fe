"""Settings of the web page (`python -m web`)."""

from dataclasses import dataclass
from pathlib import Path

from configs.ranges import COUNT, NOT_NEGATIVE, Range, check


@dataclass(frozen=True, kw_only=True)
class WebConfig:
    """A page on which clips are dropped, watched while they become worlds, looked at and downloaded."""

    port: int = 8000
    """Port of page and viewer; the next free one is taken if it is in use."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 and :: let other machines in; visitors then need the link printed at start, or the password."""

    public_url: str = ""
    """Address under which a proxy shows the page, for example https://worlds.example.org or https://example.org/worlds; the proxy may
    pass that path on or take it off."""

    password: str = ""
    """What visitors must know; the environment variable V2W_PASSWORD keeps it out of the list of processes. Empty: a token in the link
    printed at start where other machines can reach the page, nothing where not."""

    open_to_all: bool = False
    """Ask nobody for a password or token, for pages behind a login of their own."""

    workspace: Path = Path("worlds")
    """Folder for uploads and results; earlier runs in it are listed."""

    max_upload_mb: int = 500
    """Largest clip that is taken, in megabytes."""

    max_queue: int = 20
    """Most jobs that may wait."""

    min_free_mb: int = 2000
    """Space that stays free on the workspace's disk, in megabytes: below, no clip is taken."""

    def __post_init__(self) -> None:
        check(self, Range(1, 65535), "port")
        check(self, COUNT, "max_upload_mb")
        check(self, Range(1, 100_000), "max_queue")
        check(self, NOT_NEGATIVE, "min_free_mb")
