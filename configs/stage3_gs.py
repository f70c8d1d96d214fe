"""Settings of stage 3.2: Gaussian splatting through the inverse deformation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.ranges import COUNT, MEMORY_GB, NEAREST, NOT_NEGATIVE, POSITIVE, RATE, SEED, SHARE, Range, check, check_lattice, refuse
from utils.errors import ConfigError

_WEIGHTS = (
    *("sparsity", "sh_reg", "cam_reg", "refine_size", "refine_smooth", "refine_time", "appearance_reg", "l1", "ssim", "lpips"),
    *("normal_consistency", "distortion", "opacity_reg", "scale_reg", "alpha_reg"),
)
_RATES = ("deformation", "sh0", "shN", "opacities", "scales", "quats", "positions", "cams", "appearance")


@dataclass(frozen=True, kw_only=True)
class GSConfig:
    """Train canonical splats, each frame seeing them through its own inverse deformation."""

    root_path: Path = Path()
    """Scene folder, as preprocess_video.py made it."""
    run: str = ""
    """Alignment run inside the scene, for example frame_to_model_icp_24_1_offset0."""
    global_opt_subdir: str = "after_global_optimization"
    """Alignment to start from: after_global_optimization or after_non_rigid_icp."""
    inverse_deform_dir: Path | None = None
    """Folder of stage 3.1; default <run>/inverse_deformation."""
    original_images_dir: Path | None = None
    """Folder of the frames at full resolution, in the order of results.npz; default: the images of results.npz."""
    image_scale: float = 1.0
    """Size of the images trained on, relative to those loaded; smaller is faster and blurrier."""
    out_dir: Path | None = None
    """Folder of the result; default <run>/gs_<renderer>."""
    renderer: Literal["2dgs", "3dgs"] = "2dgs"
    """2dgs: flat discs with normals and depth distortion; 3dgs: ellipsoids, faster."""
    rasterizer: str = "auto"
    """Rasteriser backend; auto takes gsplat on CUDA and the embedded one on a CPU."""
    device: str = "auto"
    """cpu, cuda, or auto: CUDA where gsplat can run."""
    max_gpu_gb: float = 0.0
    """Most GPU memory to take, in GiB; what does not fit is trained in blocks, or with fewer splats, on smaller images where they are
    large. 0: all there is."""
    blocks: int | Literal["auto"] = "auto"
    """Spatial blocks that the world is trained in, one after another; each holds its own splats and, coarsely, the rest of the world. auto:
    as few as fit the GPU's memory, see max_gpu_gb."""
    gpus: int = 1
    """GPUs to train on, each with its own views in every step; there are fewer steps accordingly."""
    views_per_step: int = 0
    """Frames whose gradients are averaged in a step, a multiple of the GPUs; num_iters still counts frames. 0: one per GPU."""
    deform: bool = True
    """Render through the inverse deformation; off: rigid rendering."""
    deform_inverse_rotations: bool = False
    """Turn the splats by the rotation of the inverse deformation too, not only move them. The rotation comes from the slopes of the
    displacement, which are noisier than it is: without it held-out frames were better on every clip and world that was tried."""
    supervise: Literal["all", "aligned"] = "all"
    """all: frames between the aligned ones are trained on too, their pose and deformation blended from their neighbours (with the
    fixed_point inverse)."""
    holdout_every: int = 8
    """Every k-th frame is kept out of training and of the initial cloud, for evaluation; 0: train on all frames."""
    num_iters: int = 15_000
    """Optimisation steps, one frame each."""
    fused_step: bool = True
    """On a GPU with Triton, 3DGS: pose, deformation, projection and Adam in one pair of kernels each way, a sixth faster."""
    budget_seconds: float = 0.0
    """Train as well as possible in so many seconds: the schedule goes by time, and num_iters is only the most steps. 0: no limit. Such a
    run depends on the machine's speed and cannot be repeated bit by bit."""
    coarse_scales: tuple[float, ...] = ()
    """Sizes of the images that the training begins with, relative to full size, one after the other, for example 0.5."""
    coarse_until: float = 0.4
    """Share of the training after which it looks at full images."""
    target_num_points: int = 1_000_000
    """Splat budget; the many copies of one surface in the cloud are merged until it is met."""
    merge_copies: bool = True
    """Merge the copies of a surface; off: start from a random choice of the cloud's points."""
    left_out: Literal["agreeing", "exclude", "train"] = "agreeing"
    """Frames that alignment could not place. agreeing: those that do not stand in the way of what other frames see are trained on where
    stage 0 placed them, the others take no part, are named and counted; exclude, train: none, all of them."""
    prune_floating_at: float = 0.5
    """Share of the steps after which splats go that no frame has on a surface of its own and some see through; 0: they stay."""
    clear_views: float = 0.3
    """Start without points that stand before a training camera, nearer than this share of the depth that its frame has there, and without
    those that hide the view from between two frames; 0: keep all."""
    shell_share: float = 0.0
    """Most splats of a shell far around the world, as a share of the budget: sky, where pixels see none of the cloud. 0: no shell."""
    initial_fill: float = 1.0
    """Share of the budget that the initial cloud fills; the rest grows by relocation."""
    relocate_every: int = 0
    """Steps between two rounds in which splats that became invisible move to where living ones are; 0: never."""
    relocate_until: float = 0.7
    """Share of the steps after which splats stay where they are."""
    relocate_rate: float = 0.05
    """Most splats that move in one round, as a share of the budget."""
    relocate_by: Literal["opacity", "gradient"] = "gradient"
    """Where to: by opacity, or by opacity and position gradient, which is where the picture is still wrong."""
    dead_opacity: float = 0.005
    """Fainter splats are dead: they are moved, and left out of the result if relocation is on."""
    sparsity_weight: float = 0.0
    """Weight of the mean opacity: lets splats that are not needed die."""
    noise: float = 0.0
    """Langevin noise on the positions of faint splats, relative to their own extent, falling with the learning rates."""
    sh_degree: int = 3
    """Highest band of view-dependent colour, 0..3."""
    sh_full_from_iter: int | None = None
    """Step from which the bands above 0 learn and the cameras are frozen; default num_iters / 3."""
    sh_freeze_means_when_full_sh: bool = False
    """Freeze the positions when the higher bands start, as published; about 0.3 dB worse on held-out frames."""
    sh_reg_weight: float = 10.0
    """Weight of the mean square of the higher bands; larger keeps the colour less view-dependent."""
    optimize_cams: bool = True
    """Refine the poses of all frames but the reference."""
    cam_reg_weight: float = 10.0
    """Weight that holds the refined poses at the aligned ones (squared radians and median depths)."""
    refine_deformation: bool = True
    """Refine the deformation of all frames but the reference by the photometric error (with the fixed_point inverse)."""
    refine_gauge: Literal["reference", "mean"] = "mean"
    """What stays: the reference frame's deformation, or the mean over all frames."""
    refine_lattice: tuple[int, int, int] = (12, 7, 2)
    """Nodes of the corrections along u, v and inverse depth; at most those of the alignment's lattice."""
    refine_size_weight: float = 30.0
    """Weight that holds the corrections at zero (mean square, in fractions of the depth)."""
    refine_smooth_weight: float = 30.0
    """Weight that holds the corrections of neighbouring nodes together (mean square, in fractions of the depth)."""
    refine_time_weight: float = 0.0
    """Weight that holds the corrections of frames that follow each other together (mean square, in fractions of the depth)."""
    lr_deformation: float = 2e-4
    """Learning rate of the corrections, in fractions of the depth."""
    optimize_positions: bool = True
    """Let the splats move."""
    reference_frame: int = 0
    """Position, in the alignment, of the frame whose pose is never refined."""
    appearance: Literal["affine", "none"] = "affine"
    """affine: a 3x4 colour map per frame takes up colour drift, so that it is not baked into the world."""
    appearance_reg_weight: float = 0.1
    """Weight that holds the colour maps at the identity."""
    lr_sh0: float = 5e-3
    """Learning rate of the base colour."""
    lr_shN: float = 1.25e-4
    """Learning rate of the higher bands."""
    lr_opacities: float = 5e-2
    """Learning rate of the opacity logits."""
    lr_scales: float = 1e-2
    """Learning rate of the log scales."""
    lr_quats: float = 1e-3
    """Learning rate of the rotations."""
    lr_positions: float = 3e-4
    """Learning rate of the positions, in median depths of the scene."""
    lr_cams: float = 1e-4
    """Learning rate of the poses, in radians and median depths."""
    lr_appearance: float = 2e-3
    """Learning rate of the colour maps."""
    lr_decay: float = 0.1
    """Every learning rate falls along a cosine to this fraction of itself."""
    initial_opacity: float = 0.5
    """Opacity of the initial splats."""
    scale_init: Literal["knn", "fixed"] = "knn"
    """knn: from the distance to the nearest neighbours; fixed: initial_scale."""
    initial_scale: float = 0.002
    """Scale of the initial splats in median depths, for scale_init fixed."""
    initial_flat_ratio: float = 0.1
    """Thickness of the initial splats along the normal, relative to their extent."""
    knn_neighbors: int = 4
    """Neighbours for the initial scale, the point itself included."""
    normal_k: int = 20
    """Neighbours for the initial normals; 0: no preferred orientation."""
    robust: bool = False
    """Give less weight to parts of frames that keep contradicting the world, such as objects that appear or vanish."""
    robust_from: float = 0.2
    """Share of the steps after which it is judged what contradicts."""
    l1_weight: float = 0.8
    """Weight of the mean absolute colour difference."""
    ssim_weight: float = 0.2
    """Weight of 1 - SSIM."""
    lpips_weight: float = 0.0
    """Weight of LPIPS with the VGG backbone; without the package lpips or the backbone's weights there is a notice and no such term."""
    normal_consistency_weight: float = 0.05
    """Weight of rendered normals against those of the rendered depth (2dgs)."""
    distortion_weight: float = 0.01
    """Weight of the depth distortion, in median depths (2dgs)."""
    opacity_reg_weight: float = 0.0
    """Weight of mean o (1 - o)."""
    scale_reg_weight: float = 0.0
    """Weight of the mean scale, in median depths."""
    alpha_reg_weight: float = 0.0
    """Weight of mean (1 - alpha): fills holes."""
    warp_refresh_visits: int = 4
    """Visits of a frame after which its inverse deformation is solved anew; in between it is extrapolated to first order."""
    plateau_rounds: int = 0
    """Stop when the loss has not fallen for so many rounds over the frames; 0: take all steps. The learning rates fall to the end of
    num_iters, so the last steps help most: stopping early costs some sharpness."""
    plateau_gain: float = 0.005
    """Least relative fall of the loss that counts as one."""
    log_every: int = 50
    """Steps between two entries of the loss curve."""
    save_every: int = 5000
    """Steps between two states from which an interrupted training resumes."""
    seed: int = 0
    """Random seed of the view order."""
    overwrite: bool = False
    """Make the result again even if it is current."""

    def __post_init__(self) -> None:
        check(self, COUNT, "num_iters", "warp_refresh_visits", "log_every", "save_every")
        check(self, Range(1, 1e8), "target_num_points")
        check(self, Range(1, 64), "gpus")
        check(self, Range(0, 1024), "views_per_step")
        check(self, Range(0, NEAREST), "normal_k")
        check(self, MEMORY_GB, "max_gpu_gb")
        check(self, SEED, "seed")
        check_lattice(self, "refine_lattice", least=1)
        check(
            self,
            NOT_NEGATIVE,
            "budget_seconds",
            "relocate_every",
            "holdout_every",
            "reference_frame",
            "sh_full_from_iter",
        )
        check(self, NOT_NEGATIVE, *(f"{name}_weight" for name in _WEIGHTS), "noise", "plateau_rounds", "plateau_gain")
        check(self, RATE, *(f"lr_{name}" for name in _RATES))
        check(self, SHARE, "prune_floating_at", "relocate_until", "robust_from", "lr_decay", "dead_opacity", "clear_views", "coarse_until")
        check(self, Range(0, 0.99), "shell_share")
        check(self, Range(0, 1, above=True), "initial_fill", "relocate_rate", "image_scale", "coarse_scales")
        check(self, Range(0, 3), "sh_degree")
        if self.blocks != "auto" and not 1 <= self.blocks <= 1000:
            raise ConfigError(f"blocks is {self.blocks}", "give auto or a number from 1")
        if self.blocks not in ("auto", 1) and self.budget_seconds:
            raise ConfigError("budget_seconds goes with one block", "leave one of them out")
        check(self, POSITIVE, "initial_scale", "initial_flat_ratio")
        check(self, Range(2, NEAREST), "knn_neighbors")
        if self.initial_fill < 1 and not self.relocate_every:
            refuse(ConfigError("initial_fill leaves slots that nothing fills", "turn relocation on, such as --config.relocate-every 100"))
        if self.holdout_every == 1:
            refuse(ConfigError("holdout_every is 1, no frame would be left", "give 0 (train on all frames) or at least 2"))
        if self.budget_seconds and (self.gpus > 1 or self.views_per_step > 1):
            refuse(ConfigError("budget_seconds goes with one view in each step", "leave gpus and views_per_step as they are"))
        if not 0 < self.initial_opacity < 1:
            refuse(ConfigError(f"initial_opacity is {self.initial_opacity}", "give a value strictly between 0 and 1"))

    @property
    def sh_start(self) -> int:
        """Step at which the higher bands start."""
        return self.num_iters // 3 if self.sh_full_from_iter is None else self.sh_full_from_iter
