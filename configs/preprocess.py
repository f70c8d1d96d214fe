"""Settings of stage 0 (`python preprocess_video.py`): from a clip to images, cameras and depth."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.ranges import AT_MOST, COUNT, SEED, SIDE, Range, check, refuse
from utils.errors import ConfigError

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")


def default_root(input_video: tuple[Path, ...], frames_dir: Path | None) -> Path:
    """Where the scene of an input goes: the first clip's path without its suffix, or `<folder>_preprocessed`.

    Raises:
        ConfigError: the input is the root of the file system.
    """
    given = input_video[0] if frames_dir is None else frames_dir
    source = given if given.name not in ("", "..") else given.resolve()  # "." and the like have a name, too
    if not source.name:
        raise ConfigError(
            f"{given} is no clip and no folder of frames", "give the path of one, or say with scene_root where the scene goes"
        )
    if frames_dir is not None or source.is_dir():
        return source.with_name(source.name + "_preprocessed")
    return source.with_suffix("")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """What to read, how many frames to use and who estimates the geometry. Give `input_video` or `frames_dir`."""

    input_video: tuple[Path, ...] = ()
    """Clips (MP4, MOV, WebM, GIF) of one place, or a folder of them; all are joined into one scene, with equal shares of its frames."""
    frames_dir: Path | None = None
    """Folder of images that sort by name, instead of a clip."""
    scene_root: Path | None = None
    """Where the scene is written. Default: the clip's path without its suffix, or `<frames_dir>_preprocessed`."""
    max_frames: int = 100
    """Most frames that become the scene; more give a denser scene and take longer."""
    max_stride: int = 8
    """Largest step between chosen frames that counts as dense; longer clips are still covered to their end, and this is said."""
    image_ext: str = "png"
    """Format of the written frames: png (lossless), jpg or webp."""
    prefer_sharp: bool = False
    """Choose the sharpest frame near each uniform position instead of exactly that one."""
    backend: str = "auto"
    """Who estimates cameras and depth: `sfm` (no weights, any CPU), `da3` (learned), `import` (cameras from files), or `auto`."""
    cameras: Path | None = None
    """Cameras found by another program: a COLMAP model, nerfstudio's transforms.json or an npz (with its depth, if any). They replace
    estimated ones; images are matched by file name."""
    pose_priors: Path | None = None
    """Cameras that the clip's video model was given (SEVA, GEN3C, Lyra, Voyager: JSON, npz or text), one for each frame: they stay where
    the frames' matches agree, and the other frames are placed among them."""
    masks: Path | None = None
    """Folder of images named like the frames (or one for all): white pixels are used, black ones ignored by every stage."""
    lens: str = "none"
    """Lens distortion and rolling shutter to take out of captured footage: `none`, `estimate`, or FOCAL,K or FOCAL,K,READOUT (focal length
    in longest sides, radial coefficient, time from the first row to the last in frame intervals)."""
    mask_overlays: bool = False
    """Ignore opaque logos and watermarks: what stands still while the picture around it moves."""
    mask_sky: Literal["auto", "on", "off"] = "auto"
    """Treat what looks like sky (smooth, bright, joined to the upper edge) as far and least certain: always, never, or (auto) where the
    depth found by `sfm` bears it out."""
    model_name: str = "depth-anything/DA3NESTED-GIANT-LARGE-1.1"
    """Weights of the `da3` backend: a name or a local folder."""
    commercial_safe: bool = False
    """Let the `da3` backend use only weights whose licence allows commercial use."""
    process_res: int = 504
    """Longest side of the scene's images and depth in pixels; both sides become multiples of 14."""
    features: Literal["auto", "sift", "xfeat"] = "auto"
    """What `sfm` recognises places by: `sift`, or `xfeat`, which adds learned matches where SIFT has none (wide steps, revisits) and needs
    the extra of that name; auto is xfeat where its weights are installed."""
    between_frames: int = 3
    """Frames between two chosen ones that may help to measure depth; 0 uses the chosen frames alone."""
    every_frame: bool = True
    """Place the other frames of the clip too, by the depth of the chosen ones, and write all cameras to exports/cameras."""
    as_is: bool = False
    """Use every frame of the input and all of each: no repeats, bad first frames or second shots left out, no bars cut off."""
    part_of: int | None = None
    """Where the clip shows several places (shots, or frames that contradict each other): build the one that this frame of the clip shows,
    from 1, instead of the one that most frames show."""
    seed: int = 0
    """Makes mapping repeatable."""
    overwrite: bool = False
    """Make the scene again even if it is current."""

    def __post_init__(self) -> None:
        if bool(self.input_video) == (self.frames_dir is not None):
            refuse(ConfigError("give either a clip or a folder of frames", "pass --input_video CLIP or --frames_dir FOLDER"))
        if self.cameras is not None and self.pose_priors is not None:
            refuse(ConfigError("both cameras and pose_priors are given", "give cameras that hold, or those that only may, not both"))
        if self.given_cameras is not None and self.backend not in ("auto", "import"):
            refuse(ConfigError(f"cameras are given, but the backend {self.backend} estimates its own", "leave backend at auto"))
        if self.backend == "import" and self.given_cameras is None:
            refuse(ConfigError("the backend import needs cameras", "pass --cameras with a COLMAP model or a transforms.json"))
        if self.given_cameras is not None and self.lens != "none":
            refuse(ConfigError("a lens is given, but cameras from files hold for the frames as they are", "leave lens at none"))
        if self.max_frames < 2:
            refuse(ConfigError(f"max_frames is {self.max_frames}", "at least 2 frames are needed, 24 or more are sensible"))
        check(self, AT_MOST, "max_frames")
        check(self, COUNT, "max_stride")
        check(self, Range(0, 1000), "between_frames")
        check(self, SEED, "seed")
        if self.part_of is not None:
            check(self, COUNT, "part_of")
        if self.process_res < 56:
            refuse(ConfigError(f"process_res is {self.process_res}", "give at least 56 pixels, 252 or 504 are sensible"))
        check(self, Range(high=SIDE), "process_res")
        if self.image_ext not in IMAGE_EXTENSIONS:
            refuse(ConfigError(f"image_ext '{self.image_ext}' is unknown", f"choose one of: {', '.join(IMAGE_EXTENSIONS)}"))

    @property
    def given_cameras(self) -> Path | None:
        """Where cameras from elsewhere are, to be taken as they are or as priors; None if there are none."""
        return self.cameras or self.pose_priors

    @property
    def root(self) -> Path:
        """The scene root, with its default."""
        if self.scene_root is not None:
            return self.scene_root
        return default_root(self.input_video, self.frames_dir)
