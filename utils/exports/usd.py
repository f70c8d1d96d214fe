"""Splats as an OpenUSD ParticleField3DGaussianSplat (OpenUSD 26.03), for Isaac Sim, Omniverse and other USD programs."""

from pathlib import Path

import numpy as np
import torch

from utils.errors import MissingDependencyError
from utils.exports.ply import host
from utils.types import Array, Splats

USD_SUFFIXES = (".usdc", ".usda", ".usd")
_EXTENT_SIGMAS = 3.0


def write_usd(path: Path, splats: Splats, *, z_up: bool, metres_per_unit: float) -> None:
    """Writes a binary stage whose default prim /World holds the splats and their extent, without which some viewers show nothing.

    Args:
        path: `.usdc`, `.usda` or `.usd`.
        splats: in the stage's axes: x right, y up, z back, or z up.
        z_up: which axis the stage declares as up.
        metres_per_unit: length of a scene unit in metres.

    Raises:
        MissingDependencyError: usd-core is not installed, or older than 26.03.
    """
    try:
        from pxr import Gf, Sdf, Usd, UsdGeom, UsdVol, Vt
    except ModuleNotFoundError as error:
        raise MissingDependencyError("USD export needs the package 'usd-core', which is not installed", _HINT) from error
    if not hasattr(UsdVol, "ParticleField3DGaussianSplat"):
        raise MissingDependencyError(f"usd-core {Usd.GetVersion()} has no ParticleField3DGaussianSplat; 26.3 or newer has", _HINT)
    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z if z_up else UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, metres_per_unit)
    stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, "/World").GetPrim())
    field = UsdVol.ParticleField3DGaussianSplat.Define(stage, "/World/Splats")
    scales = host(torch.exp(splats.log_scales))
    field.CreatePositionsAttr(Vt.Vec3fArray.FromNumpy(host(splats.means)))
    field.CreateScalesAttr(Vt.Vec3fArray.FromNumpy(scales))
    unit = host(torch.nn.functional.normalize(splats.quats, dim=1))
    field.CreateOrientationsAttr(Vt.QuatfArray.FromNumpy(unit[:, [1, 2, 3, 0]]))  # pxr's arrays are xyzw in memory
    field.CreateOpacitiesAttr(Vt.FloatArray.FromNumpy(host(torch.sigmoid(splats.logit_opacities))))
    field.CreateRadianceSphericalHarmonicsDegreeAttr(splats.sh_degree)
    sh = field.CreateRadianceSphericalHarmonicsCoefficientsAttr(Vt.Vec3fArray.FromNumpy(host(splats.sh).reshape(-1, 3)))
    primvar = UsdGeom.Primvar(sh)
    primvar.SetElementSize(splats.sh.shape[1])
    primvar.SetInterpolation(UsdGeom.Tokens.vertex)
    low, high = _extent(host(splats.means), scales)
    UsdGeom.Boundable(field.GetPrim()).CreateExtentAttr(Vt.Vec3fArray([Gf.Vec3f(*low), Gf.Vec3f(*high)]))
    stage.GetRootLayer().documentation = "video_to_world"
    kind = Sdf.FileFormat.FindById("usda" if path.suffix == ".usda" else "usdc")
    layer = Sdf.Layer.CreateNew(str(path), args={"format": kind.formatId})
    layer.TransferContent(stage.GetRootLayer())
    layer.Save()


_HINT = "pip install 'usd-core>=26.3'"


def _extent(means: Array, scales: Array) -> tuple[list[float], list[float]]:
    reach = _EXTENT_SIGMAS * scales.max(axis=1, keepdims=True, initial=0)
    if not len(means):
        return [0.0] * 3, [0.0] * 3
    return (means - reach).min(axis=0).astype(np.float64).tolist(), (means + reach).max(axis=0).astype(np.float64).tolist()
