"""Settings of `eval_gs`, `utils.export_checkpoint_to_ply` and `utils.view_checkpoint`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from configs.ranges import AT_MOST, MEMORY_GB, NOT_NEGATIVE, POSITIVE, SIDE, Range, check, refuse
from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Renders a trained world along camera paths, measures it and refreshes the report."""

    ALIASES: ClassVar[dict[str, str]] = {"global_opt_subdir": "", "target_num_points": ""}
    """Flags of old command lines; the checkpoint knows both."""

    root_path: Path
    """Scene root."""

    run: str = ""
    """Run folder inside the scene root; empty takes the newest."""

    checkpoint_dir: Path | None = None
    """Folder of the trained splats; unset takes the newest of gs_2dgs and gs_3dgs in the run. A bare name is looked up in the run."""

    transforms_path: Path | None = None
    """Fly-through path JSON; unset takes <root>/gs_video/0000_extend_transforms.json, or makes such a path where there is none."""

    out_dir: Path | None = None
    """Where results go; unset takes <checkpoint_dir>/gs_video_eval."""

    original_images_dir: str = ""
    """Folder of frames at another resolution to compare with and render at; empty uses the images of results.npz."""

    save_images: bool = True
    """Also write rendered views as PNG: those from the frames' own poses, and with save_path_images those of all other paths."""

    save_path_images: bool = True
    """With save_images: also every view of the fly-through and of other paths. Off in the fast preset, whose films show them."""

    save_video: bool = True
    """Write an MP4 per path."""

    film_height: int = 0
    """Height of the MP4s in pixels; 0: 720 along the shorter side, on a GPU the clip's own size where it is larger, on a CPU the size that
    was trained for the films from the clip's own poses; others are rendered there at up to three times that and enlarged. 2160: 4K."""

    fps: int = 30
    """Frames per second of the MP4s; those along the clip last as long as the clip."""

    max_frames: int = -1
    """Render at most this many views of the fly-through; not positive renders all."""

    render_gs_video_path: bool = True
    """Render the fly-through path."""

    render_input_poses: bool = True
    """Render the poses stage 0 estimated."""

    render_optimised_poses: bool = True
    """Render the poses as refined by alignment and training."""

    render_side_by_side: bool = True
    """Render the clip and the world side by side."""

    render_clip_poses: bool = False
    """Render every frame of the clip, those between the chosen ones too, from where it was taken (exports/cameras)."""

    extra_paths: tuple[Literal["orbit", "spiral", "dolly"], ...] = ()
    """Further paths, made from the cameras: a circle around the point looked at, a spiral, a move forward and back."""

    extra_path_frames: int = 90
    """Number of views of each further path."""

    override_width: int = -1
    """Width of the renders in pixels; needs override_height too."""

    override_height: int = -1
    """Height of the renders in pixels; needs override_width too."""

    white_background: bool = False
    """Put renders over white instead of black."""

    metrics: bool = True
    """Measure PSNR, SSIM, sharpness and consistency into metrics.json."""

    off_path_degrees: float = 10.0
    """How far off the clip's cameras the world is measured, too (off_path in metrics.json), in degrees about what they look at."""

    lpips: bool = False
    """Also measure LPIPS; needs the package lpips and its weights on this machine."""

    ground_truth: Path | None = None
    """Synthetic worlds: the ground_truth.npz of `python -m utils.synthetic`, or its folder. Novel views are measured against the clean
    truth, placed by one similarity for all of them and by one for each."""

    rasterizer: str = "auto"
    """Rasteriser backend, or auto for the best one that runs here."""

    device: str = "auto"
    """cpu, cuda, or auto."""
    max_gpu_gb: float = 0.0
    """Most GPU memory to take, in GiB; what does not fit is rendered on the CPU. 0: all there is."""

    report: bool = True
    """Write <root>/report.html at the end."""

    overwrite: bool = False
    """Make the result again even if it is current."""

    def __post_init__(self) -> None:
        if (self.override_width > 0) != (self.override_height > 0):
            refuse(ConfigError("override_width and override_height go together", "give both, or neither"))
        if self.override_width > 0 and self.original_images_dir:
            refuse(ConfigError("override_width/height and original_images_dir both set the size", "give the size or the images, not both"))
        check(self, Range(0, 90, above=True), "off_path_degrees")
        check(self, Range(1, 1000), "fps")
        check(self, Range(1, 100_000), "extra_path_frames")
        check(self, Range(0, 4320), "film_height")
        check(self, Range(high=SIDE), "override_width", "override_height")
        check(self, AT_MOST, "max_frames")
        check(self, MEMORY_GB, "max_gpu_gb")


ExportFormat = Literal[
    "ply", "ply-compressed", "splat", "spz", "sog", "glb", "usd", "html",
    "colmap", "colmap-bin", "nerfstudio", "cloud", "cloud-npz", "mesh-ply", "mesh-glb", "mesh-textured", "collider",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Writes a trained world in a format other programs open."""

    root_path: Path
    """Scene root."""

    run: str = ""
    """Run folder inside the scene root; empty takes the newest."""

    checkpoint_dir: Path | None = None
    """Folder of the trained splats; unset takes the newest of gs_2dgs and gs_3dgs in the run. A bare name is looked up in the run."""

    global_opt_subdir: str = ""
    """Alignment whose cloud goes into the COLMAP, nerfstudio and cloud exports; unset takes the one that the splats were trained from."""

    format: ExportFormat = "ply"
    """ply: standard splat PLY; ply-compressed, splat, spz, sog: compact splats for the web; glb: splats as glTF; usd: splats as OpenUSD;
    html: one page with viewer and world inside; colmap, colmap-bin, nerfstudio: cameras, images and cloud for other trainers; cloud,
    cloud-npz: the canonical cloud as PLY or compressed NPZ; mesh-ply, mesh-glb: a coloured surface fused from rendered depth;
    mesh-textured: a lighter one with a texture, as GLB for engines; collider: the bare surface as GLB, for physics."""

    layout: Literal["standard", "strict", "newest"] = "standard"
    """strict: for readers that insist on it, PLY with normals, harmonics filled up to degree 3 and no comments, and SPZ version 2;
    newest: SPZ version 4 instead of 3."""

    out_ply: Path | None = None
    """Where the export goes, a folder for colmap and nerfstudio; unset takes splats_<renderer>.ply and the like in checkpoint_dir."""

    max_points: int = -1
    """Keep only this many splats, those with the largest opacity times area; not positive keeps all."""

    up: Literal["keep", "x", "y", "z", "-x", "-y", "-z"] = "keep"
    """Turn the world so that its up direction, as the cameras were held, is this axis of the file. keep leaves the world as it is,
    y down as usual for splat PLYs; spz, usd and all kinds of GLB, which are y up by definition, are then given their usual axes."""

    scale: float = 1.0
    """Multiply all lengths by this."""

    title: str = ""
    """Title of the html page; empty takes the name of the scene root."""

    credit: str = ""
    """Line under the title of the html page: who made the world and what others may do with it."""

    mesh_resolution: int = 192
    """Voxels along the longest side of the fused volume; time and memory grow with its cube."""

    mesh_triangles: int = 0
    """Simplify the mesh to about this many triangles; 0: 150,000 for a collider, 60,000 for a textured mesh, all for the others."""

    watertight: bool = False
    """Close the mesh where no camera saw: a room becomes a cavity without holes, an object a closed block."""

    texture_size: int = 2048
    """Side of the texture in pixels; larger is sharper, up to what the splats show."""

    rasterizer: str = "auto"
    """Rasteriser backend for meshes and for the check of what was written, or auto."""

    device: str = "auto"
    """cpu, cuda, or auto."""

    def __post_init__(self) -> None:
        check(self, POSITIVE, "scale")
        check(self, Range(high=1e8), "max_points")
        check(self, Range(16, 1024), "mesh_resolution")
        check(self, Range(64, SIDE), "texture_size")
        check(self, Range(0, 1e8), "mesh_triangles")


@dataclass(frozen=True, kw_only=True)
class ViewerConfig:
    """Shows a trained world in the browser."""

    root_path: Path
    """Scene root."""

    run: str = ""
    """Run folder inside the scene root; empty takes the newest."""

    checkpoint_dir: Path | None = None
    """Folder of the trained splats; unset takes the newest of gs_2dgs and gs_3dgs in the run. A bare name is looked up in the run."""

    global_opt_subdir: str = "after_global_optimization"
    """Alignment whose cloud can be shown."""

    port: int = 8080
    """Port of the page; the next free one is taken if it is in use."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 and :: let other machines in; visitors then need the link printed at start, or the password."""

    public_url: str = ""
    """Address under which a proxy shows the viewer, for example https://worlds.example.org/viewer."""

    password: str = ""
    """What visitors must know; empty: a token in the printed link where other machines can reach the viewer, nothing where not."""

    show_cameras: bool = True
    """Show the training cameras with their images."""

    training_cameras_scale: float = 0.06
    """Size of the camera symbols as a share of the median scene depth."""

    near_plane: float = 0.0
    """Nearest distance shown, as a share of the median distance of the splats from the first camera; 0: a hundredth."""

    far_plane: float = 1e10
    """Accepted for old command lines, as are the following: splats are drawn by the browser, at the resolution of its window."""

    max_side: int = 960
    """Accepted for old command lines."""

    moving_side: int = 320
    """Accepted for old command lines."""

    rasterizer: str = "auto"
    """Accepted for old command lines."""

    device: str = "auto"
    """Accepted for old command lines."""

    def __post_init__(self) -> None:
        check(self, Range(1, 65535), "port")
        check(self, POSITIVE, "training_cameras_scale")
        check(self, Range(0, 1e11, above=True), "far_plane")
        check(self, NOT_NEGATIVE, "near_plane")
        check(self, Range(16, 65536), "max_side", "moving_side")
