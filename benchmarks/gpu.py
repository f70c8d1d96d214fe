"""`python -m benchmarks.gpu`: checks every GPU kernel against its float64 oracle, then times kernels and stages on one CUDA device.

Checks come first, with fresh random inputs and with fresh memory filled with NaN, so that a kernel that leaves something unwritten
cannot pass. Times are medians of CUDA events after a warm-up; the spread is the 10th to 90th percentile. `floor` is the time that moving
the named bytes at the measured copy bandwidth (or the named operations) takes at least, as a share of the median.

    python -m benchmarks.gpu                                                  # checks and times of all kernels
    python -m benchmarks.gpu --end-to-end                                     # results.npz to PLY and film, 50 frames
    python -m benchmarks.gpu --frames-sweep 10 25 50 100 200                  # cost per frame, and a plot
    python -m benchmarks.gpu --memory-proof --max-gpu-gb 8 --iterations 300   # every stage under a cap
    python -m benchmarks.gpu --frames 100 --splats-sweep 300_000 1_000_000 5_000_000 10_000_000 --limits 24    # training over splats
    python -m benchmarks.gpu --gpus 1 2 --iterations 4000                     # joint alignment and training
"""

import argparse
import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import gpu_pipeline, gpu_scaling
from utils.cameras import se3
from utils.deformation.inverse import FixedPointInverseWarp, LocalWarp
from utils.deformation.inverse import reference as inverse_reference
from utils.deformation.inverse import triton as inverse_triton
from utils.deformation.lattice.reference import LatticeField
from utils.matching.optical_flow import reference as flow_torch
from utils.points.confidence.batched import voxel_confident
from utils.sfm.backend import depth_of
from utils.sfm.rehearsal import made_clip
from utils.splatting.rasterize.contract import SplatMode
from utils.splatting.rasterize.gsplat import GsplatRasterizer
from utils.splatting.rasterize.reference import TorchRasterizer
from utils.splatting.rasterize.triton import SHAPES, BlendShape, TritonRasterizer
from utils.splatting.ssim import ssim
from utils.splatting.view import reference as gaussians
from utils.splatting.view import triton as gaussians_triton
from utils.types import CameraGaussians, CameraSet, Scene, Splats

DEVICE = torch.device("cuda")
SIZE = (280, 504)
LATTICE = (6, 20, 36)
"""nz, nv, nu."""


@dataclass(frozen=True)
class Row:
    """One line of the table; times in ms, memory in MiB."""

    name: str
    median: float
    low: float
    high: float
    peak: float
    floor: float | None


# ---------------------------------------------------------------------------------------------------- inputs


def camera(size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    h, w = size
    return torch.tensor([[0.9 * w, 0, 0.48 * w], [0, 0.9 * w, 0.53 * h], [0, 0, 1]], dtype=dtype)


def dense_cloud(num: int, size: tuple[int, int], generator: torch.Generator, layers: float = 8.0) -> list[Tensor]:
    """Means, quats, log scales, logits of splats as a merged cloud gives them: flat, about a pixel wide, on a few smooth surfaces.

    `layers` is how many splats share a pixel; a fifth of them lies outside of the image.
    """
    K, (h, w) = camera(size), size
    u, v = (torch.rand(num, generator=generator) * 1.12 - 0.06) * w, (torch.rand(num, generator=generator) * 1.12 - 0.06) * h
    z = 3.0 + torch.sin(u / 60) * 0.5 + torch.cos(v / 45) * 0.4 + torch.randint(0, 2, (num,), generator=generator) * 0.8
    z = z + 0.01 * torch.randn(num, generator=generator)
    means = torch.stack([(u - K[0, 2]) / K[0, 0] * z, (v - K[1, 2]) / K[1, 1] * z, z], -1)
    scale = z / K[0, 0] * (h * w * layers / num) ** 0.5 * 0.5
    log_scales = scale.log()[:, None] + 0.3 * torch.randn(num, 3, generator=generator) + torch.tensor([0.0, 0.0, -2.3])
    quats = torch.nn.functional.normalize(torch.tensor([1.0, 0, 0, 0]) + 0.3 * torch.randn(num, 4, generator=generator), dim=-1)
    return [means, quats, log_scales, torch.randn(num, generator=generator)]


def random_cloud(num: int, generator: torch.Generator) -> list[Tensor]:
    """Means, quats, scales, opacities, colours (float64): anisotropic, some behind the camera, some far larger than the image."""
    uniform = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    z = uniform(num) * 3 + 1
    means = torch.stack([(uniform(num) - 0.5) * 1.6 * z, (uniform(num) - 0.5) * 1.2 * z, z], -1)
    scales = 0.05 * torch.exp(0.6 * torch.randn(num, 3, generator=generator, dtype=torch.float64))
    means[0, 2], means[1, 2], scales[2] = -1.0, 0.005, 4.0
    return [means, torch.randn(num, 4, generator=generator, dtype=torch.float64), scales, uniform(num), uniform(num, 3)]


def smooth_nodes(amplitude: float, generator: torch.Generator) -> Tensor:
    """(nz, nv, nu, 3) float64 displacement that varies over a few cells."""
    coarse = amplitude * torch.randn(1, 3, 3, 4, 5, generator=generator, dtype=torch.float64)
    fine = torch.nn.functional.interpolate(coarse, size=LATTICE, mode="trilinear", align_corners=True)
    return fine[0].permute(1, 2, 3, 0).contiguous()


def field_of(nodes: Tensor, size: tuple[int, int]) -> LatticeField:
    bounds = torch.tensor([[0.15, 0.6]], dtype=nodes.dtype, device=nodes.device)
    return LatticeField(nodes[None], bounds, camera(size, nodes.dtype)[None].to(nodes.device), torch.tensor(size))


# ---------------------------------------------------------------------------------------------------- checks


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory is NaN inside."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def relative(got: Tensor | None, expected: Tensor | None) -> float:
    if got is None or expected is None:
        return 0.0 if got is expected else float("nan")
    return float((got.detach().double().cpu() - expected.detach().cpu()).norm() / expected.detach().norm().clamp(min=1e-12).cpu())


def render_with_gradients(
    rasterizer: object, cloud: list[Tensor], size: tuple[int, int], mode: str, dtype: torch.dtype, seed: int
) -> list[Tensor]:
    """Outputs and gradients of the five attributes for random image gradients."""
    device = rasterizer.device  # type: ignore[attr-defined]
    leaves = [a.detach().to(device, dtype, copy=True).requires_grad_() for a in cloud]
    output = rasterizer.render(CameraGaussians(*leaves), camera(size, dtype).to(device), size, mode)  # type: ignore[attr-defined]
    images = [output.rgb, output.alpha, output.depth, *((output.normal, output.distortion) if mode == "2dgs" else ())]
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(i.shape, generator=generator, dtype=torch.float64) for i in images]
    torch.stack([(i * w.to(device, dtype)).sum() for i, w in zip(images, weights, strict=True)]).sum().backward()
    return [*images, *(leaf.grad for leaf in leaves)]


def check_rasterizer(seed: int, shapes: list[BlendShape | None]) -> dict[str, float]:
    """Largest relative L2 error of an output or gradient, per mode."""
    errors = {}
    generator = torch.Generator().manual_seed(seed)
    for num, size in ((400, (61, 90)), (40, (20, 33)), (2000, (64, 64))):
        cloud = random_cloud(num, generator)
        for mode in ("3dgs", "2dgs"):
            expected = render_with_gradients(TorchRasterizer(DEVICE), cloud, size, mode, torch.float64, seed)
            for shape in shapes:
                got = render_with_gradients(TritonRasterizer(DEVICE, shape), cloud, size, mode, torch.float32, seed)
                worst = max(relative(g, e) for g, e in zip(got, expected, strict=True))
                errors[f"{mode} N={num} {shape}"] = worst
    return errors


def check_inverse(seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    nodes = smooth_nodes(0.03, generator)
    means = torch.cat(dense_cloud(5000, SIZE, generator)[:1]).double()
    field = field_of(nodes, SIZE)
    expected = inverse_reference.solve(field, 0, means)
    coordinates = torch.from_numpy(field.affine_coordinates(0)).float().to(DEVICE)
    solved, jacobian, residual = inverse_triton.invert_lattice(
        nodes.float().to(DEVICE), coordinates, means.float().to(DEVICE), inverse_reference.settings()
    )
    errors = {"inverse point": relative(solved, expected.q0), "inverse Jacobian": relative(jacobian, expected.jacobian)}
    return {**errors, "inverse residual": float(residual.max())}


def check_view(seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    num = 1000
    arrays = [draw(num, 3), draw(num, 4), 0.3 * draw(num, 3), draw(num), 0.3 * draw(num, 16, 3)]
    pose, y0 = se3.exp(0.3 * draw(6)), draw(num, 3)
    jacobian = torch.eye(3, dtype=torch.float64) + 0.1 * draw(num, 3, 3)
    weights = [draw(num, 3), draw(num, 4), draw(num, 3), draw(num), draw(num, 3)]

    def evaluate(function: Callable[..., CameraGaussians], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        leaves = [a.detach().to(device, dtype, copy=True).requires_grad_() for a in (*arrays, pose)]
        local = LocalWarp(*(t.to(device, dtype) for t in (y0, y0 + 0.1, jacobian, y0[:, 0])))
        view = function(Splats(*leaves[:5]), leaves[5], local, active_degree=3, turn=True)
        outputs = [view.means, view.quats, view.scales, view.opacities, view.colors]
        torch.stack([(o * w.to(device, dtype)).sum() for o, w in zip(outputs, weights, strict=True)]).sum().backward()
        return [*outputs, *(leaf.grad for leaf in leaves)]

    expected = evaluate(gaussians.view_gaussians, torch.device("cpu"), torch.float64)
    got = evaluate(gaussians_triton.view_gaussians, DEVICE, torch.float32)
    return {"view of the splats": max(relative(g, e) for g, e in zip(got, expected, strict=True))}


def check_flow(seed: int) -> dict[str, float]:
    """Jacobi steps of the flow against float64, and the flow of a known shift against that shift (in pixels)."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    batch, (h, w) = 3, (61, 90)
    across, down = torch.zeros(batch, 1, h, w + 1, dtype=torch.float64), torch.zeros(batch, 1, h + 1, w, dtype=torch.float64)
    across[..., 1:-1], down[..., 1:-1, :] = draw(batch, 1, h, w - 1), draw(batch, 1, h - 1, w)
    matrix = (1 + draw(batch, 1, h, w), draw(batch, 1, h, w) - 0.5, 1 + draw(batch, 1, h, w))
    arguments = (*matrix, draw(batch, 2, h, w), across, down, draw(batch, 2, h, w))
    expected = flow_torch.relax(*arguments)
    got = flow_torch.relax(*(a.float().to(DEVICE) for a in arguments))
    source, target, shift = shifted_pair(4, SIZE, generator)
    flow = flow_torch.dense_flow(source, target, torch.ones_like(source, dtype=torch.bool))
    off = (flow - shift).norm(dim=-1)[:, 16:-16, 16:-16].median()
    print(f"  flow of a smooth shift of 3 pixels: median error {float(off):.3f} pixels")
    return {"flow relaxation": relative(got, expected), "flow of a shift (1e-2 pixels is 1e-4)": 0.01 * float(off)}


def shifted_pair(count: int, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Textures (B, H, W), the same shifted, and the shift (B, H, W, 2) that leads from the first to the second, on the device."""
    h, w = size
    rough = torch.rand(count, 1, h // 3, w // 3, generator=generator).to(DEVICE)
    source = 255 * torch.nn.functional.interpolate(rough, size, mode="bicubic", align_corners=False)
    grid = flow_torch.pixel_grid(h, w, DEVICE)
    shift = torch.stack([3 * torch.sin(grid[..., 1] / 40), 2 * torch.cos(grid[..., 0] / 50)], -1).expand(count, -1, -1, -1)
    inverse = shift
    for _ in range(20):
        inverse = flow_torch.sample(shift.permute(0, 3, 1, 2), grid - inverse).permute(0, 2, 3, 1)
    return source[:, 0], flow_torch.sample(source, grid - inverse)[:, 0], shift


# ---------------------------------------------------------------------------------------------------- times


def measure(name: str, work: Callable[[], object], floor_ms: float | None = None, repeats: int = 30) -> Row:
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    times.sort()
    peak = torch.cuda.max_memory_allocated() / 2**20
    return Row(name, statistics.median(times), times[len(times) // 10], times[-1 - len(times) // 10], peak, floor_ms)


def copy_bandwidth() -> float:
    """Bytes per ms of a large device-to-device copy, read plus written."""
    source = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * len(source) / measure("copy", lambda: target.copy_(source)).median


def floats(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def time_rasterizer(rasterizer: object, cloud: list[Tensor], size: tuple[int, int], mode: str, label: str, bandwidth: float) -> list[Row]:
    leaves = [a.clone().requires_grad_() for a in cloud]
    K = camera(size).to(DEVICE)
    gradient = torch.randn(*size, 3, device=DEVICE)

    def forward() -> Tensor:
        return rasterizer.render(CameraGaussians(*leaves), K, size, mode).rgb  # type: ignore[attr-defined]

    def both() -> None:
        for leaf in leaves:
            leaf.grad = None
        forward().backward(gradient)

    moved = floats(*cloud) + len(cloud[0]) * 64  # attributes read, one record each way
    with torch.no_grad():
        rows = [measure(f"{label} forward", forward, moved / bandwidth)]
    return [*rows, measure(f"{label} forward + backward", both, 3 * moved / bandwidth)]


def time_warp_and_view(num: int, size: tuple[int, int], bandwidth: float, generator: torch.Generator) -> list[Row]:
    means, quats, log_scales, logits = (t.to(DEVICE) for t in dense_cloud(num, size, generator))
    nodes = smooth_nodes(0.03, generator)
    field = field_of(nodes.float(), size).to(DEVICE)
    warp = FixedPointInverseWarp(field)
    local = warp.linearize(means, 0)
    sh = torch.randn(num, 16, 3, device=DEVICE)
    pose = torch.eye(4, device=DEVICE)
    rows = [measure("inverse deformation, Triton", lambda: warp.linearize(means, 0), num * 64 / bandwidth)]
    rows.append(measure("inverse deformation, torch", lambda: inverse_reference.solve(warp.field, 0, means), num * 64 / bandwidth, 5))
    leaves = [t.requires_grad_() for t in (means, quats, log_scales, logits, sh)]
    for name, function in (("Triton", gaussians_triton.view_gaussians), ("torch", gaussians.view_gaussians)):

        def both(function: Callable[..., CameraGaussians] = function) -> None:
            view = function(Splats(*leaves), pose, local, active_degree=3, turn=True)
            outputs = (view.means, view.quats, view.scales, view.opacities, view.colors)
            torch.autograd.grad(outputs, leaves, outputs)

        moved = 2 * num * (11 + 48 + 14 + 15) * 4
        rows.append(measure(f"view of the splats, forward + backward, {name}", both, moved / bandwidth, 10))
    optimizer = torch.optim.Adam(leaves, lr=1e-4, fused=True)
    for leaf in leaves:
        leaf.grad = torch.randn_like(leaf)
    rows.append(measure("fused Adam, 59 numbers a splat", optimizer.step, num * 59 * 28 / bandwidth))
    image, target = torch.rand(*size, 3, device=DEVICE, requires_grad=True), torch.rand(*size, 3, device=DEVICE)
    rows.append(measure("SSIM, forward + backward", lambda: torch.autograd.grad(ssim(image, target), image)))
    return rows


def time_alignment_parts(generator: torch.Generator) -> list[Row]:
    """Flow of a batch of pairs, the confidence filter of 50 frames and stage 0's depth of 40; copies to the device included."""
    h, w = SIZE
    source, target, _ = shifted_pair(56, SIZE, generator)
    known = torch.ones_like(source, dtype=torch.bool)
    rows = [measure("flow of 56 directions", lambda: flow_torch.dense_flow(source, target, known), repeats=5)]
    poses = se3.exp(0.1 * torch.randn(50, 6, generator=generator, dtype=torch.float64)).numpy()
    cameras = CameraSet(c2w=poses, K=camera(SIZE, torch.float64)[None].repeat(50, 1, 1).numpy(), size=SIZE, frame_ids=np.arange(50))
    depth, confidence = (torch.rand(50, h, w, generator=generator).numpy() + 1 for _ in range(2))
    scene = Scene(cameras=cameras, images=np.zeros((50, h, w, 3), np.uint8), depth=depth, confidence=confidence)
    rules = [(80.0, None, 50.0), (10.0, 10.0, None)]
    rows.append(measure("confidence filter of 50 frames", lambda: voxel_confident(scene, 0.5, rules, DEVICE), repeats=5))
    clip, frames = made_clip(40, SIZE)
    return [*rows, measure("depth rounds of 40 posed frames", lambda: depth_of(clip, frames), repeats=3)]


def time_training(num: int, steps: int, generator: torch.Generator) -> None:
    """Milliseconds of one step of stage 3.2 before and after the higher bands start, and the peak memory."""
    from configs.stage3_gs import GSConfig
    from train_gs.data import TrainingData
    from train_gs.train import Trainer

    frames, modes = 8, ("3dgs", "2dgs")
    poses = se3.exp(0.02 * torch.randn(frames, 6, generator=generator, dtype=torch.float64)).numpy()
    K = camera(SIZE, torch.float64)[None].repeat(frames, 1, 1).numpy()
    cameras = CameraSet(c2w=poses, K=K, size=SIZE, frame_ids=np.arange(frames))
    images = torch.randint(0, 255, (frames, *SIZE, 3), dtype=torch.uint8, generator=generator)
    nodes = torch.stack([smooth_nodes(0.03, generator) for _ in range(frames)]).float()
    bounds = torch.tensor([[0.15, 0.6]]).repeat(frames, 1)
    field = LatticeField(nodes, bounds, torch.from_numpy(K).float(), torch.tensor(SIZE))
    data = TrainingData(cameras=cameras, images=images, heldout=np.zeros(frames, bool), median_depth=3.4)
    for mode in modes:
        splats = Splats(*dense_cloud(num, SIZE, generator), torch.randn(num, 16, 3, generator=generator) * 0.1).to(DEVICE)
        config = GSConfig(renderer=mode, num_iters=2 * steps, sh_full_from_iter=steps)
        torch.cuda.reset_peak_memory_stats()
        trainer = Trainer(splats, data, FixedPointInverseWarp(field), TritonRasterizer(DEVICE), config)
        for phase in ("all but the higher bands", "with the higher bands, poses and means frozen"):
            clock, begun = [], time.perf_counter()
            for step in range(steps):
                trainer.step()
                if step == steps // 4:
                    torch.cuda.synchronize()
                    begun = time.perf_counter()
            torch.cuda.synchronize()
            clock.append((time.perf_counter() - begun) * 1000 / (steps - 1 - steps // 4))
            print(f"training {mode}, {num} splats, {phase}: {clock[0]:.2f} ms a step", flush=True)
        print(f"  peak {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB, loss {trainer._values}")
        if mode == "3dgs":
            print(kernel_profile(trainer.step, 30))


def kernel_profile(work: Callable[[], object], rows: int = 24) -> str:
    """Device time by kernel of five calls."""
    from torch.profiler import ProfilerActivity, profile

    work()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        for _ in range(5):
            work()
        torch.cuda.synchronize()
    events = sorted(recorded.key_averages(), key=lambda e: -e.self_device_time_total)[:rows]
    return "\n".join(
        f"  {e.self_device_time_total / 5000:8.3f} ms  x{e.count // 5:<4d} {e.key[:90]}" for e in events if e.self_device_time_total
    )


def render_and_differentiate(rasterizer: TritonRasterizer, cloud: list[Tensor], mode: SplatMode) -> None:
    leaves = [a.clone().requires_grad_() for a in cloud]
    rasterizer.render(CameraGaussians(*leaves), camera(SIZE).to(DEVICE), SIZE, mode).rgb.sum().backward()


def print_table(rows: list[Row]) -> None:
    print(f"{'':58s} {'median ms':>10s} {'10 % - 90 %':>17s} {'peak MiB':>9s} {'floor':>6s}")
    for r in rows:
        floor = f"{100 * r.floor / r.median:5.0f}%" if r.floor else ""
        print(f"{r.name:58s} {r.median:10.3f} {r.low:8.3f} -{r.high:7.3f} {r.peak:9.0f} {floor:>6s}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splats", type=int, default=1_200_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--sweep", action="store_true", help="also time other tile and chunk shapes")
    parser.add_argument("--profile", action="store_true", help="also print the kernels of one rendering")
    parser.add_argument("--train", type=int, default=0, metavar="STEPS", help="also time so many training steps in each phase")
    parser.add_argument(
        "--end-to-end", action="store_true", help="results.npz to PLY and film, by stage, after a small world that compiles"
    )
    parser.add_argument("--compare-cpu", action="store_true", help="quality of a small world on the GPU, on the CPU, and on the GPU again")
    parser.add_argument(
        "--frames-sweep", type=int, nargs="+", metavar="FRAMES", help="cost per frame for clips of these lengths, and a plot"
    )
    parser.add_argument("--memory-proof", action="store_true", help="all stages within --max-gpu-gb")
    parser.add_argument("--splats-sweep", type=int, nargs="+", metavar="N", help="pace and memory of training with so many splats")
    parser.add_argument("--limits", type=float, nargs="*", default=[], metavar="GB", help="--splats-sweep: the largest also within these")
    parser.add_argument("--gpus", type=int, nargs="+", metavar="COUNT", help="joint alignment and training on 1, 2, ... GPUs")
    parser.add_argument("--parity", action="store_true", help="stage 1 by this method and by the published one")
    parser.add_argument("--gsplat", action="store_true", help="time gsplat beside the own kernels, where it runs")
    parser.add_argument("--frames", type=int, default=50, help="of the scene")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("H", "W"), help="of the scene")
    parser.add_argument("--iterations", type=int, default=10_000, help="training steps")
    parser.add_argument("--repeats", type=int, default=1, help="runs of --end-to-end")
    parser.add_argument("--max-gpu-gb", type=float, default=0.0, help="memory limit of --end-to-end and --memory-proof")
    parser.add_argument("--plot", type=Path, default=Path("frames_sweep.png"), help="where --frames-sweep draws")
    parser.add_argument("--cpu-too", action="store_true", help="--frames-sweep on the CPU as well")
    parser.add_argument("--kernels", action="store_true", help="checks and times of single kernels even beside other parts")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(arguments.seed)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, seed {arguments.seed}")
    scaling = ("end_to_end", "compare_cpu", "frames_sweep", "memory_proof", "splats_sweep", "gpus", "parity", "gsplat", "train")
    alone = not any(getattr(arguments, name) for name in scaling)
    correct = time_kernels(arguments, generator) if alone or arguments.kernels else True
    if arguments.train:
        time_training(arguments.splats, arguments.train, generator)
    run_scaling(arguments, generator)
    return 0 if correct else 1


def run_scaling(arguments: argparse.Namespace, generator: torch.Generator) -> None:
    """The parts that run stages, as chosen by flags."""
    size, splats, steps = tuple(arguments.size), arguments.splats, arguments.iterations
    if arguments.compare_cpu:
        gpu_pipeline.compare_small(("GPU", "CPU", "GPU again"))
    if arguments.end_to_end:
        if not arguments.compare_cpu:
            gpu_pipeline.compare_small(("GPU",))  # compiles everything
        gpu_pipeline.end_to_end(arguments.frames, size, splats, steps, arguments.repeats, arguments.max_gpu_gb)
    if arguments.frames_sweep:
        gpu_scaling.frames_sweep(arguments.frames_sweep, size, splats, arguments.plot, arguments.cpu_too)
    if arguments.memory_proof:
        gpu_scaling.memory_proof(arguments.frames, size, arguments.max_gpu_gb or 8.0, splats, steps)
    if arguments.splats_sweep:
        gpu_scaling.splats_sweep(arguments.splats_sweep, arguments.limits, arguments.frames, size)
    if arguments.gpus:
        gpu_scaling.several_gpus(arguments.gpus, arguments.frames, size, splats, steps)
    if arguments.parity:
        gpu_scaling.parity_pace(arguments.frames, size)
    if arguments.gsplat:
        time_gsplat(splats, generator)


def time_gsplat(splats: int, generator: torch.Generator) -> None:
    """Own kernels and gsplat on the same splats; one line where gsplat does not run."""
    bandwidth = copy_bandwidth()
    rows: list[Row] = []
    cloud = camera_cloud(splats, generator)
    modes: tuple[SplatMode, ...] = ("3dgs", "2dgs")
    try:
        gsplat = GsplatRasterizer(DEVICE)
        for mode in modes:
            rows += time_rasterizer(gsplat, cloud, SIZE, mode, f"{mode} gsplat", bandwidth)
    except Exception as error:  # its compiler may be missing, or fail in many ways
        print(f"gsplat does not run here: {str(error).splitlines()[0]}")
    for mode in modes:
        rows += time_rasterizer(TritonRasterizer(DEVICE), cloud, SIZE, mode, f"{mode} own", bandwidth)
    print_table(rows)


def camera_cloud(splats: int, generator: torch.Generator) -> list[Tensor]:
    """Attributes of splats in camera space, on the device."""
    cloud = [t.to(DEVICE) for t in dense_cloud(splats, SIZE, generator)]
    return [cloud[0], cloud[1], cloud[2].exp(), cloud[3].sigmoid(), torch.rand(splats, 3, device=DEVICE)]


def time_kernels(arguments: argparse.Namespace, generator: torch.Generator) -> bool:
    """Checks, then times all kernels; whether every check passed."""
    shapes: list[BlendShape | None] = [None]
    if arguments.sweep:
        shapes += [
            BlendShape(ahead=True),
            BlendShape(steps=4, ahead=True),
            BlendShape(steps=4, ahead=True, warps=1),
            BlendShape(segment=32),
            BlendShape(segment=128, back_warps=2),
            BlendShape(dot=False, back_chunk=8, back_warps=1),
            BlendShape(tile=16, chunk=8, warps=8, back_warps=8),
        ]
    with poisoned():
        errors = {
            **check_inverse(arguments.seed),
            **check_view(arguments.seed),
            **check_flow(arguments.seed),
            **check_rasterizer(arguments.seed, shapes),
        }
    for name, error in errors.items():
        print(f"  {'ok ' if error < 1e-3 else 'BAD'} {error:.1e} {name}")
    bandwidth = copy_bandwidth()
    print(f"copy bandwidth {bandwidth / 1e9:.2f} TB/s")
    rows: list[Row] = []
    cloud = camera_cloud(arguments.splats, generator)
    modes: tuple[SplatMode, ...] = ("3dgs", "2dgs")
    for mode in modes:
        for shape in shapes:
            shown = shape or SHAPES[mode]
            back = f"{shown.back_chunk}x{shown.back_warps}{'' if shown.dot else ' shuffle'}"
            seen = f"{shown.chunk}x{shown.warps}{f' by {shown.steps}' if shown.steps > 1 else ''}{' ahead' if shown.ahead else ''}"
            label = f"{mode} tile {shown.tile}, {seen}, {back} of {shown.segment}"
            rows += time_rasterizer(TritonRasterizer(DEVICE, shape), cloud, SIZE, mode, label, bandwidth)
    rows += time_warp_and_view(arguments.splats, SIZE, bandwidth, generator)
    rows += time_alignment_parts(generator)
    print_table(rows)
    if arguments.profile:
        for mode in modes:
            print(f"kernels of one {mode} forward + backward:")
            print(kernel_profile(functools.partial(render_and_differentiate, TritonRasterizer(DEVICE), cloud, mode)))
    return all(np.isfinite(e) and e < 1e-3 for e in errors.values())


if __name__ == "__main__":
    raise SystemExit(main())
