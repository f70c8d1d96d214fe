"""What `benchmarks.splatting` compares: each variant is an alignment and changes to the settings of stage 3.2."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from configs.stage3_gs import GSConfig


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row.

    Attributes:
        aligned: stages 1 and 2; without it the predicted poses and cloud as they are.
        inverse: method of stage 3.1.
        changes: settings of stage 3.2 that differ from the budget's.
    """

    aligned: bool = True
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


def make_variants() -> dict[str, Variant]:
    """All variants by name; `with_X` and `without_X` switch one ingredient, whatever the default is."""
    variants = {
        "naive": Variant(aligned=False, changes={"deform": False}),
        "rigid": Variant(changes={"deform": False}),
        "ours": Variant(),
        "network": Variant(inverse="network"),
    }
    for name, ingredient in INGREDIENTS.items():
        variants[f"with_{name}"] = Variant(changes=ingredient.on)
        variants[f"without_{name}"] = Variant(changes=ingredient.off)
    return variants


VARIANTS = make_variants()


def ablation() -> tuple[str, ...]:
    """`ours`, and for every ingredient the variant that differs from the defaults."""
    defaults = {f.name: f.default for f in fields(GSConfig)}
    active = {name for name, i in INGREDIENTS.items() if all(defaults[key] == value for key, value in i.on.items())}
    return ("ours", *(f"without_{name}" if name in active else f"with_{name}" for name in INGREDIENTS))
