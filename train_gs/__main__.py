"""`python -m train_gs --config.root-path S --config.run R`."""

from configs.base import cli
from configs.stage3_gs import GSConfig

if __name__ == "__main__":
    cli(GSConfig, "train_gs.stage:run", "python -m train_gs")
