"""`python -m eval_gs --config.root-path S [--config.run R] [--config.checkpoint-dir C] [--config.out-dir O]`."""

from configs.base import cli
from configs.evaluation import EvalConfig

if __name__ == "__main__":
    cli(EvalConfig, "eval_gs.stage:run", "python -m eval_gs")
