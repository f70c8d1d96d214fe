"""Time of one optimisation step per rasteriser, resolution and thread count, and gradient errors against the oracle.

Run `python -m benchmarks.rasterizer`. A step renders, takes L1 + SSIM (and normal and distortion terms for surfels), goes backward and
makes one Adam step. CPU time is of the whole process; on a busy machine it is the number to trust. One step per row is the fastest of
`REPEATS`.
"""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from utils.splatting.rasterize.contract import Rasterizer, SplatMode, load_rasterizer
from utils.splatting.ssim import l1_and_ssim
from utils.types import CameraGaussians

NUM_SPLATS = 30_000
REPEATS = 15
MODES: tuple[SplatMode, ...] = ("3dgs", "2dgs")


def make_gaussians(count: int, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> tuple[CameraGaussians, Tensor]:
    """Random anisotropic Gaussians that fill the view, about as large as their spacing."""
    g = torch.Generator().manual_seed(1)
    h, w = size
    focal = 0.9 * w
    z = 2 + 4 * torch.rand(count, generator=g)
    x, y = (torch.rand(count, generator=g) - 0.5) * 1.05 * w, (torch.rand(count, generator=g) - 0.5) * 1.05 * h
    sigma = 0.8 * math.sqrt(h * w / count) * z / focal
    gaussians = CameraGaussians(
        means=torch.stack([x / focal * z, y / focal * z, z], -1).to(dtype),
        quats=torch.randn(count, 4, generator=g).to(dtype),
        scales=(sigma[:, None] * torch.exp(0.4 * torch.randn(count, 3, generator=g))).to(dtype),
        opacities=torch.sigmoid(1 + 1.5 * torch.randn(count, generator=g)).to(dtype),
        colors=torch.rand(count, 3, generator=g).to(dtype),
    )
    return gaussians, torch.tensor([[focal, 0, w / 2], [0, focal, h / 2], [0, 0, 1]], dtype=dtype)


def leaves_of(gaussians: CameraGaussians) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in vars(gaussians).values()]


def one_step(
    rasterizer: Rasterizer, leaves: list[Tensor], K: Tensor, target: Tensor, mode: SplatMode, optimizer: torch.optim.Optimizer
) -> dict[str, tuple[float, float]]:
    """(wall, CPU) seconds of each part."""
    marks = [(time.perf_counter(), time.process_time())]

    def mark() -> None:
        marks.append((time.perf_counter(), time.process_time()))

    out = rasterizer.render(CameraGaussians(*leaves), K, (target.shape[0], target.shape[1]), mode)
    mark()
    l1, similarity = l1_and_ssim(out.rgb, target)
    loss = 0.8 * l1 + 0.2 * (1 - similarity)
    if out.normal is not None and out.distortion is not None:
        loss = loss + 0.05 * (out.alpha - out.normal[..., 2]).mean() + 0.01 * out.distortion.mean()
    mark()
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    mark()
    optimizer.step()
    mark()
    parts = zip(("render", "loss", "backward", "adam"), marks[:-1], marks[1:], strict=True)
    return {name: (after[0] - before[0], after[1] - before[1]) for name, before, after in parts}


def time_steps(mode: SplatMode, size: tuple[int, int], threads: int) -> str:
    torch.set_num_threads(threads)
    rasterizer = load_rasterizer("numba", "cpu")
    gaussians, K = make_gaussians(NUM_SPLATS, size)
    leaves = leaves_of(gaussians)
    target = torch.rand(*size, 3, generator=torch.Generator().manual_seed(0))
    # A learning rate of 0 does the work of a step and keeps all repeats alike.
    optimizer = torch.optim.Adam(leaves, lr=0.0, fused=True)
    steps = [one_step(rasterizer, leaves, K, target, mode, optimizer) for _ in range(REPEATS)]

    def best(pick: Callable[[dict[str, tuple[float, float]]], float]) -> float:
        return 1e3 * min(pick(step) for step in steps)

    wall = best(lambda step: sum(part[0] for part in step.values()))
    cpu = best(lambda step: sum(part[1] for part in step.values()))
    parts = " ".join(f"{best(lambda step, n=name: step[n][1]):8.1f}" for name in steps[0])
    return f"{mode}  {size[1]}x{size[0]}  {threads} thread(s)  wall {wall:6.1f}  CPU {cpu:6.1f}  | CPU of parts: {parts}"


def gradient_errors(mode: SplatMode, count: int) -> str:
    """Relative L2 errors of float32 gradients against the float64 oracle."""
    size = (40, 50)
    grads: dict[str, list[Tensor]] = {}
    for name, dtype in (("torch", torch.float64), ("numba", torch.float32)):
        gaussians, K = make_gaussians(count, size, dtype)
        leaves = leaves_of(gaussians)
        out = load_rasterizer(name, "cpu").render(CameraGaussians(*leaves), K, size, mode)
        g = torch.Generator().manual_seed(7)
        images = [image for image in vars(out).values() if image is not None]
        torch.autograd.backward([i.mul(torch.randn(i.shape, generator=g).to(dtype)).sum() for i in images])
        grads[name] = [leaf.grad.double() for leaf in leaves if leaf.grad is not None]
    errors = [float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(grads["numba"], grads["torch"], strict=True)]
    return f"{mode}  {count:4d} Gaussians  " + " ".join(f"{error:.1e}" for error in errors)


def main() -> None:
    start = time.perf_counter()
    print("gradient errors: means quats scales opacities colors")
    for mode in MODES:
        for count in (40, 300):
            print(gradient_errors(mode, count))
    print(f"first use, with compilation unless cached: {time.perf_counter() - start:.1f} s")
    print(f"milliseconds per step, {NUM_SPLATS} splats; parts: render loss backward adam")
    for mode in MODES:
        for size in ((144, 256), (280, 504)):
            for threads in (1, 2):
                print(time_steps(mode, size, threads), flush=True)


if __name__ == "__main__":
    main()
