"""Residuals and loss terms on torch tensors, one function each; `total` weighs and adds the ones that are on.

Symbols: `delta` (M, 3) moved point minus its partner on the model; normals (M, 3) unit, of either sign; gradients (M, 3) of the intensity
(0..1) along the surface, per unit of length; weights (M,). Partners, normals and gradients are constants unless said otherwise.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Term = Callable[[], Tensor]


def total(weights: Mapping[str, float], terms: Mapping[str, Term]) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of weight times value, and the weighted values by name; a term of weight 0 is not evaluated.

    Raises:
        KeyError: a term without a weight.
        ValueError: every weight is 0.
    """
    values = {name: weights[name] * term() for name, term in terms.items() if weights[name] > 0}
    if not values:
        raise ValueError("all terms are off")
    return torch.stack(list(values.values())).sum(), values


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of values (M,), 0 of none."""
    if len(values) == 0:
        return values.sum()
    if weights is None:
        return values.mean()
    return (weights * values).sum() / weights.sum().clamp(min=1e-12)


def plane_distance(delta: Tensor, normals: Tensor) -> Tensor:
    """(M,) signed distance along the normal (Chen and Medioni 1992)."""
    return (delta * normals).sum(-1)


def point_to_plane(delta: Tensor, normals: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared distance along the normal."""
    return weighted_mean(plane_distance(delta, normals).square(), weights)


def point_to_point(delta: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared distance (Besl and McKay 1992)."""
    return weighted_mean(delta.square().sum(-1), weights)


def robust_distance(delta: Tensor, normals: Tensor | None, scale: float, weights: Tensor | None = None) -> Tensor:
    """Mean Geman-McClure cost of the distance along the normal, or of that in space without normals; scale 0: of the squared distance."""
    squared = delta.square().sum(-1) if normals is None else plane_distance(delta, normals).square()
    return weighted_mean(geman_mcclure(squared, scale) if scale > 0 else squared, weights)


def color_residual(delta: Tensor, normals: Tensor, gradients: Tensor, intensity: Tensor, own_intensity: Tensor) -> Tensor:
    """(M,) intensity the model predicts where a point projects onto its tangent plane, minus the point's own (Park et al., ICCV 2017).

    Args:
        delta: point minus partner.
        normals: of the partner.
        gradients: of the partner.
        intensity: (M,) of the partner.
        own_intensity: (M,) of the point.
    """
    tangential = delta - plane_distance(delta, normals)[:, None] * normals
    return intensity + (gradients * tangential).sum(-1) - own_intensity


def color(
    delta: Tensor,
    normals: Tensor,
    gradients: Tensor,
    intensity: Tensor,
    own_intensity: Tensor,
    gate: float | None,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean squared colour residual of the pairs whose intensities differ by at most `gate`; of all pairs where fewer than 3 do."""
    residual = color_residual(delta, normals, gradients, intensity, own_intensity).square()
    if gate is None:
        return weighted_mean(residual, weights)
    near = (intensity - own_intensity).abs() <= gate
    if int(near.sum()) < 3:
        return weighted_mean(residual, weights)
    return weighted_mean(residual[near], None if weights is None else weights[near])


def smoothness(centers: Tensor, shifted: Tensor) -> Tensor:
    """Mean over places and directions of the squared difference of two twists, (C, 6) and (S, C, 6) one step away."""
    return (shifted - centers).square().sum(-1).mean()


def magnitude(twists: Tensor) -> Tensor:
    """Mean length of twists (M, 6), with a finite gradient at 0."""
    return (twists.square().sum(-1) + 1e-20).sqrt().mean()


def anchor(twists: Tensor, start: Tensor) -> Tensor:
    """Mean squared change of each component of twists (..., 6)."""
    return (twists - start).square().mean()


def matches(delta: Tensor, certainty: Tensor, max_distance: float | None) -> Tensor:
    """Mean squared distance of matches closer than `max_distance`, weighted by certainty (M,), times the greatest certainty among them."""
    squared = delta.square().sum(-1)
    if max_distance is not None:
        near = squared.detach() < max_distance**2
        squared, certainty = squared[near], certainty[near]
    if len(squared) == 0:
        return squared.sum()
    return certainty.max() * (certainty * squared).sum() / certainty.sum().clamp(min=1e-8)


def leave_one_out(delta: Tensor, target_normals: Tensor, weights: Tensor) -> Tensor:
    """Distance of pairs of different frames along the normal at the target; both ends move.

    A pair's weight is the number of partners its source could have drawn, which makes the mean one over all pairs.
    """
    return point_to_plane(delta, target_normals, weights)


def thin_shell(delta: Tensor, source_normals: Tensor, weights: Tensor) -> Tensor:
    """The same along the normal at the source: together they flatten sheets that a single normal would only shear."""
    return point_to_plane(delta, source_normals, weights)


def geman_mcclure(squared: Tensor, scale: float) -> Tensor:
    """Robust squared residual that tends to scale^2 (Geman and McClure 1987)."""
    return scale**2 * squared / (scale**2 + squared)


def axis_steps(step: float, device: torch.device) -> Tensor:
    """(6, 3) steps along both directions of every axis."""
    eye = torch.eye(3, device=device) * step
    return torch.cat([eye, -eye])


def smoothness_centers(points: Tensor, share: float, step: float, generator: torch.Generator) -> Tensor:
    """(C, 3) random `share` of points (N, 3), and four copies of each scattered by half a step."""
    count = max(1, int(share * len(points)))
    chosen = points[torch.randint(len(points), (count,), generator=generator).to(points.device)]
    noise = torch.randn((4, count, 3), generator=generator).to(points) * (0.5 * step)
    return torch.cat([chosen, (chosen + noise).reshape(-1, 3)])
