"""The optimisation of stage 3.2: splats, poses and colour maps against the frames, one frame per step."""

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from configs.stage3_gs import GSConfig
from train_gs.appearance import Appearance
from train_gs.cameras import CameraRefinement
from train_gs.data import TrainingData
from train_gs.floaters import hide_floating
from train_gs.graphs import StepGraphs
from train_gs.losses import distortion, normal_consistency
from train_gs.plateau import Plateau
from train_gs.population import SplatRows, living, relocate, shake
from train_gs.refine import FieldRefinement, time_links
from train_gs.resolution import Shown, scale_at, shrunk
from train_gs.trust import PixelTrust, weighted_pair
from train_gs.warp import WarpCache
from utils.deformation.inverse import FixedPointInverseWarp, IdentityInverseWarp, InverseWarp
from utils.device.triton_support import triton_ready
from utils.errors import NonFiniteError
from utils.splatting.checkpoint import TrainedScene
from utils.splatting.lpips import load_lpips
from utils.splatting.rasterize.contract import Rasterizer
from utils.splatting.ssim import l1_and_ssim
from utils.splatting.view import rigid, view_gaussians
from utils.types import NULL_REPORTER, RenderOutput, Reporter, Splats, StepReport

if TYPE_CHECKING:
    from train_gs.fused.step import FusedStep

NEAR_IN_MEDIAN_DEPTHS = 0.01

_RATES = ("positions", "quats", "scales", "opacities", "sh0", "shN", "cams", "deformation", "appearance")
"""Places of the learning rates in one tensor on a GPU: those of the splats first, see `FusedStep`."""

READ_EVERY = 10
"""On a GPU, steps between two readings of the loss: reading waits for the device, which then waits for the next launches."""


class SplatParameters(nn.Module):
    """The splats as parameters; base colour and higher bands apart, since the latter start late."""

    def __init__(self, splats: Splats):
        super().__init__()
        self.means = nn.Parameter(splats.means.clone())
        self.quats = nn.Parameter(splats.quats.clone())
        self.log_scales = nn.Parameter(splats.log_scales.clone())
        self.logit_opacities = nn.Parameter(splats.logit_opacities.clone())
        self.sh0 = nn.Parameter(splats.sh[:, :1].clone())
        self.shN = nn.Parameter(splats.sh[:, 1:].clone())

    def base(self) -> Splats:
        """Splats with gradients, without the higher bands."""
        return Splats(self.means, self.quats, self.log_scales, self.logit_opacities, self.sh0)

    def rows(self) -> SplatRows:
        """The tensors with one row for each splat."""
        return SplatRows(self.means, self.quats, self.log_scales, self.logit_opacities, self.sh0, self.shN)

    def complete(self) -> Splats:
        """All of it, detached."""
        values = (self.means, self.quats, self.log_scales, self.logit_opacities, torch.cat([self.sh0, self.shN], 1))
        return Splats(*(value.detach() for value in values))


class Trainer:
    """One training run; `step()` until `done`, then `result()`.

    The state holds all that the rest of the run depends on, so a run that is stopped and resumed ends with the same bits.
    """

    def __init__(self, splats: Splats, data: TrainingData, warp: InverseWarp, rasterizer: Rasterizer, config: GSConfig):
        device = splats.means.device
        self.config, self.data, self.rasterizer, self.device = config, data, rasterizer, device
        self.parameters = SplatParameters(splats)
        self.poses = CameraRefinement(data.cameras, data.median_depth, device)
        self.appearance = Appearance(len(data.cameras), device, data.color_maps if config.appearance == "affine" else None)
        self.warp = warp.to(device)
        self.refinement = self._make_refinement()
        solve = self.warp.linearize if self.refinement is None else self.refinement.solve
        self.warps = WarpCache(solve, config.warp_refresh_visits)
        self.training_views = [int(v) for v in np.flatnonzero(data.trained)]
        self.order: list[int] = []
        self.generator = torch.Generator().manual_seed(config.seed)
        used = None if data.used is None else data.used.to(device)
        self._full = self._shown = Shown(data.images.to(device), used, torch.from_numpy(data.cameras.K).float().to(device))
        self._scale = 1.0
        self._rates = torch.zeros(len(_RATES), device=device)
        self.trust = self._make_trust()
        self.lpips = load_lpips("vgg", str(device)) if config.lpips_weight > 0 else None
        self._values: dict[str, float] = {}
        self.plateau = Plateau(config.plateau_rounds, config.plateau_gain)
        self.iteration = 0
        self.hidden: int | None = None  # splats that floated, once they have been looked for
        self._earlier = 0.0
        self._begun: float | None = None
        self.history: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}  # of the values since the last entry of the history
        self.bands_active = False
        self.optimizer = self._make_optimizer()
        # gsplat reads back from the device within a step, so only the own kernels can be recorded
        budget = getattr(rasterizer, "budget", None)
        self._graphs = StepGraphs(self._update, budget, device) if device.type == "cuda" and budget is not None else None
        self._fused = self._make_fused()
        if config.sh_start == 0:
            self._activate_bands()
        self._prepare_graphs()

    @property
    def done(self) -> bool:
        """All steps are taken, or the seconds are over, or more steps have stopped to help."""
        return self.progress >= 1.0 or self.plateau.reached

    @property
    def progress(self) -> float:
        """Share of the training that is behind: of the steps, or of the seconds it is given if that is more."""
        share = self.iteration / self.config.num_iters
        return max(share, self.seconds / self.config.budget_seconds) if self.config.budget_seconds > 0 else share

    @property
    def seconds(self) -> float:
        """Since the first step, not counting the time between a stop and its resumption."""
        return self._earlier + (0.0 if self._begun is None else time.perf_counter() - self._begun)

    def _make_refinement(self) -> FieldRefinement | None:
        """Corrections of the deformation, where they are wanted and the inverse is one of a lattice."""
        if not self.config.refine_deformation or not isinstance(self.warp, FixedPointInverseWarp):
            return None
        data, across = self.data, self.config.refine_lattice[0]
        links = time_links(data.cameras, data.sources, data.median_depth, across) if self.config.refine_time_weight > 0 else None
        return FieldRefinement(self.warp, self.config.refine_lattice, self.device, links)

    def _make_trust(self) -> PixelTrust | None:
        """Weights of the pixels, where some may differ from 1."""
        if not self.config.robust and self.data.used is None:
            return None
        return PixelTrust(self.data.used, self.training_views, len(self.data.cameras), self.data.cameras.size, self.device)

    def _make_fused(self) -> "FusedStep | None":
        """The fused step, where all that is asked for is what it can do."""
        config, plain = self.config, isinstance(self.warp, (FixedPointInverseWarp, IdentityInverseWarp))
        by_splat = config.opacity_reg_weight + config.sparsity_weight + config.scale_reg_weight
        if (
            not config.fused_step
            or self._graphs is None
            or config.renderer != "3dgs"
            or config.deform_inverse_rotations
            or by_splat > 0
            or not plain
        ):
            return None
        if not triton_ready() or not (self.refinement is None or self.refinement.fused):
            return None
        from train_gs.fused.step import FusedStep

        near = NEAR_IN_MEDIAN_DEPTHS * self.data.median_depth
        return FusedStep(self.parameters.rows(), self.optimizer, self._rates, self.rasterizer, near, self._decay_of_bands)  # type: ignore[arg-type]

    # ------------------------------------------------------------------------------------------------ optimiser

    def _make_optimizer(self) -> torch.optim.Adam:
        config, splats, depth = self.config, self.parameters, self.data.median_depth
        groups: list[dict[str, Any]] = [
            {"name": "sh0", "params": [splats.sh0], "base_lr": config.lr_sh0},
            {"name": "opacities", "params": [splats.logit_opacities], "base_lr": config.lr_opacities},
            {"name": "scales", "params": [splats.log_scales], "base_lr": config.lr_scales},
            {"name": "quats", "params": [splats.quats], "base_lr": config.lr_quats},
        ]
        splats.means.requires_grad_(config.optimize_positions)
        if config.optimize_positions:
            groups.append({"name": "positions", "params": [splats.means], "base_lr": config.lr_positions * depth})
        for view, twist in enumerate(self.poses.twists):
            twist.requires_grad_(config.optimize_cams and view != config.reference_frame)
        if config.optimize_cams:
            groups.append({"name": "cams", "params": [t for t in self.poses.twists if t.requires_grad], "base_lr": config.lr_cams})
        if self.refinement is not None:
            self.refinement.corrections[config.reference_frame].requires_grad_(config.refine_gauge == "mean")
            trained = [c for c in self.refinement.corrections if c.requires_grad]
            groups.append({"name": "deformation", "params": trained, "base_lr": config.lr_deformation})
        self.appearance.requires_grad_(config.appearance == "affine")
        if config.appearance == "affine":
            groups.append({"name": "appearance", "params": list(self.appearance.deviations), "base_lr": config.lr_appearance})
        groups = [group for group in groups if group["params"]]
        # eps: gradients of single splats are of the order of 1e-8, Adam's default would damp them
        return torch.optim.Adam(groups, lr=0.0, eps=1e-15, fused=True, capturable=self.device.type == "cuda")

    @property
    def _decay_of_bands(self) -> float:
        """Adam's weight decay adds w x to the gradient: that of the penalty on the mean square of the higher bands, at no cost."""
        return 2 * self.config.sh_reg_weight / max(self.parameters.shN.numel(), 1)

    def _activate_bands(self) -> None:
        """Higher bands join; unless they were active from the start, the poses and perhaps the positions stop."""
        self.bands_active = True
        if self.parameters.shN.shape[1]:
            group = {
                "name": "shN",
                "params": [self.parameters.shN],
                "base_lr": self.config.lr_shN,
                "weight_decay": self._decay_of_bands,
            }
            self.optimizer.add_param_group(group)
        self._prepare_graphs()
        if self.config.sh_start == 0:
            return
        self.poses.requires_grad_(False)
        if self.config.sh_freeze_means_when_full_sh:
            self.parameters.means.requires_grad_(False)
            self.warps.freeze()

    def _decay(self) -> float:
        """What is left of every learning rate at this step."""
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(self.progress, 1.0)))
        return self.config.lr_decay + (1.0 - self.config.lr_decay) * cosine

    def _set_learning_rates(self) -> None:
        factor = self._decay()
        if self._graphs is not None:
            torch.mul(self._base_rates, factor, out=self._rates)
            return
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    def _prepare_graphs(self) -> None:
        """What recorded steps cannot make: learning rates on the device, and zero moments for parameters that have none."""
        if self._graphs is None:
            return
        self._graphs.forget()
        self._base_rates = torch.zeros(len(_RATES))
        for group in self.optimizer.param_groups:
            slot = _RATES.index(group["name"])
            group["lr"], self._base_rates[slot] = self._rates[slot], group["base_lr"]
        self._base_rates = self._base_rates.to(self.device)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter not in self.optimizer.state:
                    self.optimizer.state[parameter] = {
                        "step": torch.zeros((), device=self.device),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }

    # ------------------------------------------------------------------------------------------------ one step

    def step(self) -> dict[str, float]:
        """One frame: render, compare, update; returns the values of the step (on a GPU, of the last one that was read).

        Raises:
            NonFiniteError: the loss is NaN or infinite.
        """
        self._enter_step()
        view = self._next_view()
        self._set_learning_rates()
        if self._graphs is None:
            measured = self._update(view)
        else:
            measured = self._graphs.run(view)
        if self._read_now():
            self._read(measured, view)
        self.iteration += 1
        self._move_splats()
        return self._values

    def _enter_step(self) -> None:
        """Brings in the higher bands and larger images when they are due."""
        if self._begun is None:
            self._begun = time.perf_counter()
        if not self.bands_active and self.progress >= self.config.sh_start / self.config.num_iters:
            self._activate_bands()
        scale = scale_at(self.progress, self.config.coarse_scales, self.config.coarse_until)
        if scale != self._scale:
            self._scale, self._shown = scale, self._full if scale == 1.0 else self._full.resized(scale)
            if self._graphs is not None:
                self._graphs.forget()

    def _read_now(self) -> bool:
        """Whether the values of this step are wanted on the host."""
        return self.device.type == "cpu" or self.iteration % READ_EVERY == 0 or self.iteration == self.config.num_iters - 1

    def _read(self, measured: Tensor, view: int) -> None:
        """Takes note of (3,) loss, L1 and mean squared error; `view` is named if they are not finite."""
        loss, l1, squared = measured.tolist()
        self._values = {"loss": loss, "l1": l1, "psnr": psnr_of(squared)}
        self._require_finite(view)
        self.plateau.add(loss)
        if self._graphs is not None:
            self._graphs.check_budget()

    def _move_splats(self) -> None:
        """Relocation of dead splats and noise, when they are due; in place, so recorded steps stay valid."""
        config, rows = self.config, self.parameters.rows()
        if config.prune_floating_at and self.hidden is None and self.progress >= config.prune_floating_at:
            warp = self.trained_warp() if config.deform else None
            rasterizer = self.rasterizer if config.clear_views > 0 else None
            self.hidden = hide_floating(rows, self._as_trained(), self.data, warp, rasterizer)
        if config.noise > 0 and rows.means.requires_grad:
            seeded = torch.Generator(self.device).manual_seed(config.seed * 1_000_003 + self.iteration)
            shake(rows, config.noise * self._decay(), seeded)
        if not config.relocate_every or self.iteration % config.relocate_every:
            return
        if self.progress <= config.relocate_until:
            moved = relocate(
                rows,
                self.optimizer,
                most=math.ceil(config.relocate_rate * len(rows.means)),
                least_opacity=config.dead_opacity,
                by_gradient=config.relocate_by == "gradient",
                generator=self.generator,
            )
            if moved:
                self.warps.clear()

    def _update(self, view: int) -> Tensor:
        """Renders, compares and updates; (3,) loss without the penalty on the higher bands, L1 and mean squared error, detached."""
        self.optimizer.zero_grad(set_to_none=True)
        measured = self._backward(view)
        self.optimizer.step()
        return measured

    def _backward(self, view: int) -> Tensor:
        """Renders, compares and adds to the gradients; see `_update`."""
        shown = self._shown
        target = shown.images[view].float() / 255.0
        output, splats = self._render(view)
        rgb = self.appearance(output.rgb, output.alpha, view) if self.config.appearance == "affine" else output.rgb
        squared = _squared_error(rgb.detach(), target, None if shown.used is None else shown.used[view])
        if self.trust is not None:
            if self.config.robust:
                self.trust.observe(rgb.detach() - target, view)
            weights = self.trust.weights(view)
            rgb, target = weighted_pair(rgb, target, weights if shown is self._full else shrunk(weights[None], shown.size)[0])
        l1, similarity = l1_and_ssim(rgb, target) if self.config.ssim_weight > 0 else ((rgb - target).abs().mean(), None)
        loss = self.config.l1_weight * l1 + self._regularisers(output, splats, view)
        if similarity is not None:
            loss = loss + self.config.ssim_weight * (1.0 - similarity)
        if self.lpips is not None:
            loss = loss + self.config.lpips_weight * self.lpips(rgb.clamp(0, 1), target.clamp(0, 1))
        loss.backward()
        if self._fused is not None:
            self._fused.step(self.refinement, view)
        return torch.stack([loss.detach(), l1.detach(), squared])

    def _require_finite(self, view: int) -> None:
        if not math.isfinite(self._values["loss"]):
            frame = int(self.data.cameras.frame_ids[view])
            raise NonFiniteError(
                f"the loss became {self._values['loss']} at step {self.iteration}, frame {frame} (l1 {self._values['l1']})",
                "lower the learning rates, above all --config.lr-scales and --config.lr-positions",
            )

    def _next_view(self) -> int:
        """Training views in random order without replacement; every round also recentres the colour maps."""
        if not self.order:
            self.plateau.end_round()
            shuffled = torch.randperm(len(self.training_views), generator=self.generator).tolist()
            self.order = [self.training_views[i] for i in shuffled]
            if self.config.appearance == "affine" and self.config.lr_appearance > 0:
                self.appearance.center(self.training_views)
            if self.trust is not None and self.config.robust and self.progress >= self.config.robust_from:
                self.trust.settle()
            if self.refinement is not None and self.config.refine_gauge == "mean":
                self.refinement.center(self.training_views)
        return self.order.pop()

    def _render(self, view: int) -> tuple[RenderOutput, Splats]:
        splats = self.parameters.base()
        higher = self.parameters.shN if self.bands_active and self.parameters.shN.shape[1] else None
        degree = 0 if higher is None else self.config.sh_degree
        c2w, quat = self.poses.pose(view)
        if self._fused is not None:
            assert quat is not None
            bands = (degree + 1) ** 2
            return self._fused.draw((c2w, quat), self._lattice(view), self._shown.K[view], self._shown.size, bands), splats
        local, fresh = self.warps.at(self._rigid_means(splats, c2w), view)
        turn = self.config.deform_inverse_rotations
        gaussians = view_gaussians(splats, c2w, local, active_degree=degree, turn=turn, higher=higher, quat=quat)
        if self.refinement is not None and self.refinement.corrections[view].requires_grad:
            gaussians = replace(gaussians, means=self.refinement.moved(gaussians.means, local, view, fresh=fresh))
        return self._rasterize(gaussians, view), splats

    def _rasterize(self, gaussians: Any, view: int) -> RenderOutput:
        near = NEAR_IN_MEDIAN_DEPTHS * self.data.median_depth
        return self.rasterizer.render(gaussians, self._shown.K[view], self._shown.size, self.config.renderer, near)

    def _lattice(self, view: int) -> tuple[Tensor, Tensor] | None:
        """Nodes and coordinate map of the frame's deformation as it is now."""
        if isinstance(self.warp, IdentityInverseWarp):
            return None
        warp = self.warp if self.refinement is None else self.refinement.warp
        assert isinstance(warp, FixedPointInverseWarp)
        nodes = warp.field.nodes[view] if self.refinement is None else self.refinement.settle(view)
        return nodes, warp.coordinates(self.device)[view]

    @staticmethod
    def _rigid_means(splats: Splats, c2w: Tensor) -> Tensor:
        with torch.no_grad():
            return rigid(splats, c2w).y0

    def _regularisers(self, output: RenderOutput, splats: Splats, view: int) -> Tensor:
        """Weighted sum of all terms but the photometric ones and the penalty on the higher bands; those of weight 0 are not evaluated."""
        config, depth = self.config, self.data.median_depth
        total = torch.zeros((), device=self.device)
        if config.optimize_cams and self.poses.twists[view].requires_grad:
            total = total + config.cam_reg_weight * self.poses.penalty(view)
        if self.refinement is not None and self.refinement.corrections[view].requires_grad:
            size, steps = self.refinement.penalties(view)
            total = total + config.refine_size_weight * size + config.refine_smooth_weight * steps
            if config.refine_time_weight > 0:
                total = total + config.refine_time_weight * self.refinement.change_over_time(view)
        if config.appearance == "affine":
            total = total + config.appearance_reg_weight * self.appearance.penalty(view)
        if config.opacity_reg_weight > 0:
            opacity = splats.logit_opacities.sigmoid()
            total = total + config.opacity_reg_weight * (opacity * (1 - opacity)).mean()
        if config.sparsity_weight > 0:
            total = total + config.sparsity_weight * splats.logit_opacities.sigmoid().mean()
        if config.scale_reg_weight > 0:
            total = total + config.scale_reg_weight * splats.log_scales.exp().mean() / depth
        if config.alpha_reg_weight > 0:
            total = total + config.alpha_reg_weight * (1 - output.alpha).mean()
        if config.renderer == "2dgs" and config.normal_consistency_weight > 0:
            total = total + config.normal_consistency_weight * normal_consistency(output, self._shown.K[view])
        if config.renderer == "2dgs" and config.distortion_weight > 0:
            total = total + config.distortion_weight * distortion(output, depth)
        return total

    # ------------------------------------------------------------------------------------------------ after the last step

    def result(self) -> TrainedScene:
        """The trained scene; for what held-out frames take over from their neighbours see `CorrectionSources`."""
        trained = self._as_trained()
        if self.config.relocate_every:
            trained = replace(trained, splats=trained.splats.select(living(trained.splats, self.config.dead_opacity)))
        return trained

    def _as_trained(self) -> TrainedScene:
        """All splats, also invisible ones, and the cameras as they are now."""
        return TrainedScene(
            splats=self.parameters.complete(),
            cameras=self.poses.refined(self.data.cameras, self.data.sources),
            heldout=self.data.heldout,
            renderer=self.config.renderer,
            appearance=self.appearance.matrices(self.data.sources),
            near=NEAR_IN_MEDIAN_DEPTHS * self.data.median_depth,
            left_out=np.zeros(len(self.data.cameras), bool) if self.data.left_out is None else self.data.left_out,
        )

    def trained_warp(self) -> InverseWarp:
        """The inverse deformation as it was refined for the frames that are trained on; as it was given if it was not."""
        return self.warp if self.refinement is None else self.refinement.refined(self.data.trained)

    def release(self) -> None:
        """Lets go of recorded steps and their memory; the next step makes them anew."""
        if self._graphs is not None:
            self._graphs.forget()
            self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Everything to go on from here. The local warps are dropped, so that a run that resumes finds the same ones."""
        self.warps.clear()
        return {
            "iteration": self.iteration,
            "seconds": self.seconds,
            "splats": self.parameters.state_dict(),
            "poses": self.poses.state_dict(),
            "appearance": self.appearance.state_dict(),
            "refinement": {} if self.refinement is None else dict(self.refinement.corrections.state_dict()),
            "plateau": self.plateau.state(),
            "trust": {} if self.trust is None else dict(self.trust.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "order": self.order,
            "history": self.history,
            "sums": self.sums,
            "bands_active": self.bands_active,
            "hidden": self.hidden,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes back to a state of a run with the same settings and data."""
        if state["bands_active"] and not self.bands_active:
            self._activate_bands()
        self.parameters.load_state_dict(state["splats"])
        self.poses.load_state_dict(state["poses"])
        self.appearance.load_state_dict(state["appearance"])
        if self.refinement is not None:
            self.refinement.corrections.load_state_dict(state["refinement"])
        self.plateau.load(state["plateau"])
        if self.trust is not None:
            self.trust.load_state_dict(state["trust"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._prepare_graphs()
        self.generator.set_state(state["generator"])
        self.order, self.history, self.iteration = list(state["order"]), list(state["history"]), state["iteration"]
        self.hidden, self.sums = state["hidden"], dict(state.get("sums", {}))
        self._earlier, self._begun = state["seconds"], None


def train(trainer: Trainer, report: Reporter = NULL_REPORTER, save: Any = None, watch: Any = None) -> TrainedScene:
    """Runs the remaining steps; `save(trainer)` is called every `save_every` steps and `watch(trainer)` after each, if given."""
    config, started = trainer.config, time.perf_counter()
    while not trainer.done:
        values = trainer.step()
        sums = trainer.sums
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        if trainer.iteration % config.log_every == 0 or trainer.done:
            steps = (trainer.iteration - 1) % config.log_every + 1
            means = {name: value / steps for name, value in sums.items()}
            trainer.history.append({"step": trainer.iteration, "seconds": time.perf_counter() - started, **means})
            sums.clear()
        report.step(StepReport(stage="splatting", step=trainer.iteration - 1, total=config.num_iters, values=values))
        if save is not None and trainer.iteration % config.save_every == 0 and not trainer.done:
            save(trainer)
        if watch is not None:
            watch(trainer)
    return trainer.result()


def image_psnr(image: Tensor, target: Tensor, used: Tensor | None = None) -> float:
    """PSNR in dB of an image (H, W, 3), clamped to 0..1, against a target, over the pixels of `used` (H, W) bool."""
    return psnr_of(float(_squared_error(image, target, used)))


def _squared_error(image: Tensor, target: Tensor, used: Tensor | None) -> Tensor:
    """Mean over the used pixels and all channels; the image is clamped to 0..1."""
    squared = (image.clamp(0, 1) - target).square().mean(-1)
    return squared.mean() if used is None else (squared * used).sum() / used.sum().clamp(min=1)


def psnr_of(squared_error: float) -> float:
    """PSNR in dB of a mean squared error of values in 0..1."""
    return -10.0 * math.log10(max(squared_error, 1e-10))
