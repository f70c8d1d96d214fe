"""What a run will need, looked for before its first stage begins, so that a name or package is not found missing after minutes.

Stages look again for themselves; here everything that is wrong is told at once.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from configs.pipeline import PipelineConfig
from configs.preprocess import PreprocessConfig
from utils.errors import ConfigError, MissingDependencyError, V2WError
from utils.scene.layout import SceneLayout, plain_name


def require_usable(config: PipelineConfig, stages: dict[str, Any], made: frozenset[str] = frozenset()) -> None:
    """Checks every name, path and package that the settings of a run speak of.

    Args:
        config: of the run.
        stages: settings of the stages that will be run, by module ("train_gs").
        made: modules whose result is there; the packages that it took are not asked for again.

    Raises:
        V2WError: one or more are not there; all are named.
    """
    wrong = [error for check in _checks(config, stages, made) if (error := _fault_of(check)) is not None]
    told = list(dict.fromkeys((error.message, error.hint) for error in wrong))
    if len(told) == 1:
        raise wrong[0]
    if told:
        raise ConfigError("; ".join(message for message, _ in told), "; ".join(dict.fromkeys(hint for _, hint in told if hint)))


def _fault_of(check: Callable[[], object]) -> V2WError | None:
    try:
        check()
    except V2WError as error:
        return error
    return None


def _checks(config: PipelineConfig, stages: dict[str, Any], made: frozenset[str]) -> Iterator[Callable[[], object]]:
    layout = SceneLayout(config.scene_root)
    geometry = stages.get("preprocess_video")
    if geometry is not None:
        yield lambda: _geometry(geometry, packages="preprocess_video" not in made)
        yield lambda: _lens(geometry.lens)
        yield from _there({f"stage0.{name}": getattr(geometry, name) for name in ("cameras", "pose_priors", "masks")})
    for name in ("frame_to_model_icp", "global_optimization"):
        if name in stages:
            yield partial(_matcher, stages[name].matching.matcher, packages=name not in made)
            yield partial(_twists, stages[name])
    if "global_optimization" in stages:
        yield lambda: plain_name(config.stage2.out_subdir, "stage2.out_subdir")
    if config.alignment_run is not None:
        yield lambda: _run(layout, config.alignment_run or "")
    for name in ("train_gs", "eval_gs"):
        if name in stages:
            yield partial(_rasterizer, stages[name])
    yield from _there({"inverse_deform_dir": config.inverse_deform_dir, "gs.original_images_dir": config.gs.original_images_dir})
    if "eval_gs" in stages:
        evaluation = stages["eval_gs"]
        images = Path(evaluation.original_images_dir) if evaluation.original_images_dir else None
        paths = {"eval.transforms_path": evaluation.transforms_path, "eval.ground_truth": evaluation.ground_truth}
        yield from _there(paths | {"eval.original_images_dir": images})


def _there(paths: dict[str, Path | None]) -> Iterator[Callable[[], object]]:
    for setting, path in paths.items():
        if path is not None:
            yield partial(_exists, setting, path)


def _exists(setting: str, path: Path) -> None:
    from utils.scene.media import exists

    if not exists(path):
        raise ConfigError(f"{setting}: {path} does not exist", f"check the path given to --config.{setting.replace('_', '-')}")


def _geometry(config: PreprocessConfig, *, packages: bool) -> None:
    from preprocess.geometry import resolve_backend
    from utils.da3.weights import missing
    from utils.matching.xfeat.weights import require_weights

    backend = resolve_backend(config)
    if not packages:
        return
    if backend == "sfm" and config.features == "xfeat":
        require_weights()
    if backend == "da3" and missing():
        raise MissingDependencyError(
            f"the backend 'da3' needs packages that are not installed: {', '.join(missing())}",
            "install them (see docs/backends.md), or choose the backend 'sfm', which needs no weights",
        )


def _lens(lens: str) -> None:
    from utils.scene.captured import parse_camera

    if lens not in ("none", "estimate"):
        parse_camera(lens)


def _matcher(name: str, *, packages: bool) -> None:
    from utils.matching.contract import MATCHERS
    from utils.matching.xfeat.weights import require_weights
    from utils.third_party import available

    MATCHERS.load(name)
    if name == "xfeat" and packages:
        require_weights()
    if name == "romav2" and packages and not available("romav2"):
        raise MissingDependencyError(
            "the matcher 'romav2' needs the package 'romav2', which is not installed",
            "pip install -e '.[roma]' in this program's folder, or choose the matcher 'flow', which needs no weights",
        )


def _twists(stage: Any) -> None:
    import torch

    from utils.device.accelerator import accelerator
    from utils.published.twist_fields import resolve_backend

    if stage.method == "parity" or stage.field == "hashgrid":
        resolve_backend(stage.twists, accelerator() or torch.device("cpu"), lambda _: None)


def _rasterizer(stage: Any) -> None:
    from utils.splatting.rasterize.contract import choose_rasterizer, load_rasterizer

    name, device, _ = choose_rasterizer(stage.rasterizer, stage.device)
    load_rasterizer(name, device)


def _run(layout: SceneLayout, name: str) -> None:
    if not layout.run(name).root.is_dir():
        raise ConfigError(f"alignment_run: there is no run {name} in {layout.root}", f"there are: {', '.join(layout.runs()) or 'none yet'}")
