"""`python -m global_optimization --config.root-path S --config.run R`."""

from configs.base import cli
from configs.stage2_global_optimization import GlobalOptimizationConfig

if __name__ == "__main__":
    cli(GlobalOptimizationConfig, "global_optimization.stage:run", "python -m global_optimization")
