"""`python -m web [--port 8000] [--host 127.0.0.1] [--workspace ./worlds]`."""

from configs.web import WebConfig
from utils.runtime import run_stage


def main() -> None:
    """Parses the flags, then serves until interrupted."""
    import tyro

    config = tyro.cli(WebConfig, prog="python -m web")
    from web.server import serve

    serve(config)


if __name__ == "__main__":
    run_stage(main)
