"""What `benchmarks.splatting` compares: each variant is an alignment and changes to the settings of stage 3.2."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from configs.stage3_gs import GSConfig
from utils.splatting.lpips import load_lpips

Geometry = Literal["predicted", "aligned", "half_aligned", "true", "true_mean", "consistent"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row.

    Attributes:
        geometry: what the splats start from: the predicted poses and cloud as they are; stages 1 and 2; the same on every second
            frame; the truth, see `splatting_oracle`; or the prediction for a clip of the same world whose frames do not contradict
            each other. The last three are bounds, not methods.
        inverse: method of stage 3.1.
        changes: settings of stage 3.2 that differ from the budget's.
    """

    geometry: Geometry = "aligned"
    inverse: str = "fixed_point"
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """Something that can be switched: settings of stage 3.2 with it and without it."""

    on: Mapping[str, Any]
    off: Mapping[str, Any]


INGREDIENTS = {
    "appearance": Ingredient(on={"appearance": "affine"}, off={"appearance": "none"}),
    "cameras": Ingredient(on={"optimize_cams": True}, off={"optimize_cams": False}),
    "rotations": Ingredient(on={"deform_inverse_rotations": True}, off={"deform_inverse_rotations": False}),
    "refinement": Ingredient(on={"refine_deformation": True}, off={"refine_deformation": False}),
    "robust": Ingredient(on={"robust": True}, off={"robust": False}),
    "shell": Ingredient(on={"shell_share": 0.1}, off={"shell_share": 0.0}),
    "growth": Ingredient(
        on={"relocate_every": 50, "initial_fill": 0.7, "relocate_by": "gradient"}, off={"relocate_every": 0, "initial_fill": 1.0}
    ),
    "merging": Ingredient(on={"merge_copies": True}, off={"merge_copies": False}),
    "lpips": Ingredient(on={"lpips_weight": 0.1}, off={"lpips_weight": 0.0}),
    "mcmc": Ingredient(
        on={
            "relocate_every": 50,
            "initial_fill": 0.7,
            "relocate_by": "opacity",
            "sparsity_weight": 0.01,
            "scale_reg_weight": 0.01,
            "noise": 0.3,
        },
        off={"relocate_every": 0, "initial_fill": 1.0},
    ),
}
COMPARED = ("naive", "rigid", "ours")
BOUNDS = ("naive", "ours", "true_mean", "true", "consistent")
HALF = ("half", "half_supervised")


def make_variants() -> dict[str, Variant]:
    """All variants by name; `with_X` and `without_X` switch one ingredient, whatever the default is."""
    variants = {
        "naive": Variant(geometry="predicted", changes={"deform": False}),
        "rigid": Variant(changes={"deform": False}),
        "ours": Variant(),
        "network": Variant(inverse="network"),
        "half": Variant(geometry="half_aligned", changes={"supervise": "aligned"}),
        "half_supervised": Variant(geometry="half_aligned", changes={"supervise": "all"}),
        "true": Variant(geometry="true"),
        "true_mean": Variant(geometry="true_mean"),
        "consistent": Variant(geometry="consistent", changes={"deform": False}),
    }
    for name, ingredient in INGREDIENTS.items():
        variants[f"with_{name}"] = Variant(changes=ingredient.on)
        variants[f"without_{name}"] = Variant(changes=ingredient.off)
    return variants


VARIANTS = make_variants()


def ablation() -> tuple[str, ...]:
    """`ours`, `network`, and for every ingredient the variant that differs from the defaults; LPIPS only where it can be had."""
    defaults = {f.name: f.default for f in fields(GSConfig)}
    active = {name for name, i in INGREDIENTS.items() if all(defaults[key] == value for key, value in i.on.items())}
    names = [name for name in INGREDIENTS if name != "lpips" or load_lpips("vgg") is not None]
    return ("ours", "network", *(f"without_{name}" if name in active else f"with_{name}" for name in names))
