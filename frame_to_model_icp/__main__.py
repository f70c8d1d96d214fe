"""`python -m frame_to_model_icp --config.root-path S`."""

from configs.base import cli
from configs.stage1_align import FrameToModelICPConfig

if __name__ == "__main__":
    cli(FrameToModelICPConfig, "frame_to_model_icp.stage:run", "python -m frame_to_model_icp")
