"""`python -m utils.export_checkpoint_to_ply --config.root-path S [--config.run R] [--config.checkpoint-dir C] [--config.format F]`.

Writes trained splats, or the cameras and cloud they were made from, in formats that other programs open.
"""

from configs.base import cli
from configs.evaluation import ExportConfig

if __name__ == "__main__":
    cli(ExportConfig, "utils.exports.stage:run", "python -m utils.export_checkpoint_to_ply")
