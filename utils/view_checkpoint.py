"""`python -m utils.view_checkpoint --config.root-path S [--config.run R] [--config.checkpoint-dir C] [--config.port 8080]`.

Shows trained splats in the browser; the pictures are rendered here, so any browser will do.
"""

from configs.base import cli
from configs.evaluation import ViewerConfig

if __name__ == "__main__":
    cli(ViewerConfig, "utils.viewer.app:run", "python -m utils.view_checkpoint")
