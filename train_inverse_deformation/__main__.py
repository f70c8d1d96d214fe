"""`python -m train_inverse_deformation --config.root-path S --config.run R`."""

from configs.base import cli
from configs.stage3_inverse_deformation import InverseDeformationConfig

if __name__ == "__main__":
    cli(InverseDeformationConfig, "train_inverse_deformation.stage:run", "python -m train_inverse_deformation")
