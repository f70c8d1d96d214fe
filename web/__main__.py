"""`python -m web [--port 8000] [--host 127.0.0.1] [--workspace ./worlds]`."""

import sys

from configs.base import parse_flat
from configs.web import WebConfig
from utils.runtime import run_stage


def main() -> None:
    """Parses the flags, then serves until interrupted."""
    config = parse_flat(WebConfig, sys.argv[1:], prog="python -m web", description=(WebConfig.__doc__ or "").strip(), underscores=False)
    from web.server import serve

    serve(config)


if __name__ == "__main__":
    run_stage(main)
