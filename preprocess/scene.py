"""The scene: cameras and depth of the chosen frames, without what the user, an overlay or the sky takes out of them."""

from dataclasses import dataclass

from configs.preprocess import PreprocessConfig
from preprocess.frames import Footage
from preprocess.geometry import make_backend
from utils.scene.masks import apply_masks, detect_sky, detect_static_overlay, is_sky, load_masks, mark_sky
from utils.types import Reporter, Scene


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """What stage 0 found out.

    Attributes:
        scene: the frames that could be placed.
        positions: of each of them in the source.
        provenance: backend and what it reports, lens and shutter, for the manifest.
        shown: positions of the source's frames that show this place; None: all.
    """

    scene: Scene
    positions: list[int]
    provenance: dict[str, str]
    shown: list[int] | None = None

    @property
    def offset(self) -> list[float]:
        """What was taken off all positions of a geo-referenced input (x, y, z); empty for none."""
        return [float(value) for value in self.provenance.get("world_offset", "").split()]


def reconstruct(config: PreprocessConfig, footage: Footage, backend: str, report: Reporter) -> Reconstruction:
    """Lets the backend estimate the geometry and applies the masks.

    Raises:
        GeometryError: the frames do not determine it.
        InputError: masks that do not fit.
    """
    estimator = make_backend(backend, config)
    scene = estimator.estimate(footage.frames, report)
    positions = [footage.choice.scene[row] for row in scene.cameras.frame_ids]
    if config.mask_sky == "on" or (config.mask_sky == "auto" and backend == "sfm"):
        scene = _without_sky(scene, config.mask_sky == "on", report)
    names = [footage.frames.names[footage.frames.chosen[row]] for row in scene.cameras.frame_ids]
    scene = _masked(config, footage, scene, positions, names, report)
    provenance = {"geometry": backend, **getattr(estimator, "provenance", {}), **_taken_out(footage)}
    return Reconstruction(scene=scene, positions=positions, provenance=provenance)


def _without_sky(scene: Scene, certain: bool, report: Reporter) -> Scene:
    sky = detect_sky(scene.images)
    if not certain and not is_sky(scene, sky):
        return scene
    report.note(f"masks: {sky.mean():.1%} of the frames is sky")
    return mark_sky(scene, sky)


def _masked(config: PreprocessConfig, footage: Footage, scene: Scene, positions: list[int], names: list[str], report: Reporter) -> Scene:
    """The scene without overlays and the user's masks; `positions` and `names` are those of its frames."""
    if config.mask_overlays:
        overlay = detect_static_overlay(scene.images)
        report.note(f"masks: {overlay.mean():.1%} of the picture is a static overlay")
        scene = apply_masks(scene, ~overlay[None].repeat(len(scene), axis=0), names)
    source, shown = footage.source, footage.frames.images.shape[1:3]
    for folder, cut in ((source.masks, None), (config.masks, (source.whole, source.crop))):
        if folder is None:
            continue
        keep = load_masks(folder, names, scene.cameras.size, shown, cut)
        scene = apply_masks(scene, keep if footage.straight is None else footage.straight.masks(keep, positions), names)
    return scene


def _taken_out(footage: Footage) -> dict[str, str]:
    """For the manifest: lens and shutter that were taken out of the frames."""
    if footage.straight is None:
        return {}
    camera = footage.straight.camera
    shutter = footage.straight.readout_text(footage.source.fps) if camera.readout else "none"
    return {"lens": f"{camera.lens.focal:.5f},{camera.lens.k:+.5f}", "shutter": shutter}
