"""Every number in every settings class is checked: what makes no sense is refused with its name, not met later as a traceback."""

import dataclasses
import importlib
import math
import pkgutil
import typing
from pathlib import Path

import pytest

import configs
from configs.base import load_config_file, parse, parse_flat
from configs.icp import TwistFieldConfig
from configs.ranges import COUNT, POSITIVE, Range, check
from configs.stage1_align import FrameToModelICPConfig, SolverConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from configs.stage3_gs import GSConfig
from configs.web import WebConfig
from utils.errors import ConfigError

# Numbers whose help says what values below 1 mean: they have an upper bound alone.
FREE_BELOW = {"ExportConfig.max_points", "EvalConfig.max_frames", "override_width", "override_height"}
# Infinite to programs, and refused as that on the command line.
INFINITE = {"pose_ridge"}
GIVEN = {"root_path": Path(), "scenes": "clips", "input_video": (Path("clip.mp4"),)}


def settings_classes() -> list[type]:
    modules = [importlib.import_module(f"configs.{m.name}") for m in pkgutil.iter_modules(configs.__path__)]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type) and dataclasses.is_dataclass(value)}
    return sorted((c for c in found if c.__name__.endswith("Config")), key=lambda c: c.__name__)


def default_of(kind: type) -> object:
    return kind(**{f.name: GIVEN[f.name] for f in dataclasses.fields(kind) if f.name in GIVEN})


def numbers() -> list[tuple[type, str, object]]:
    """Class, field and a value of its type that is far too small or large; for floats NaN and infinity too."""
    cases: list[tuple[type, str, object]] = []
    for kind in settings_classes():
        hints = typing.get_type_hints(kind)
        for name in (f.name for f in dataclasses.fields(kind)):
            parts = {hints[name], *typing.get_args(hints[name])}
            if bool in parts or not parts & {int, float}:
                continue
            bad: list[float] = [10**12] if FREE_BELOW & {name, f"{kind.__name__}.{name}"} else [-(10**12), 10**12]
            bad += [value for value in (math.nan, math.inf) if float in parts and not (name in INFINITE and math.isinf(value))]
            arity = len([a for a in typing.get_args(hints[name]) if a in (int, float)])
            wrapped = typing.get_origin(hints[name]) is tuple
            cases += [(kind, name, (value,) * arity if wrapped else value) for value in bad]
    return cases


def test_numbers_are_found() -> None:
    assert {kind.__name__ for kind, _, _ in numbers()} >= {"GSConfig", "IcpConfig", "LeaveOneOutConfig", "SolverConfig", "EvalConfig"}
    assert len(numbers()) > 500


@pytest.mark.parametrize(("kind", "name", "value"), numbers(), ids=lambda v: getattr(v, "__name__", str(v)))
def test_senseless_numbers_are_refused_by_name(kind: type, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(default_of(kind), **{name: value})


def test_bounds_belong_to_the_range_and_none_passes() -> None:
    @dataclasses.dataclass
    class Settings:
        share: float | None
        steps: tuple[int, ...]

    check(Settings(0.0, (1, 2)), Range(0, 1), "share")
    check(Settings(1.0, (1, 2)), Range(0, 1), "share")
    check(Settings(None, (1, 2)), POSITIVE, "share")
    with pytest.raises(ConfigError, match=r"loo\.share is 0\.0") as refused:
        check(Settings(0.0, ()), POSITIVE, "share", group="loo")
    assert refused.value.hint == "give a value above 0 and at most 10,000,000"
    with pytest.raises(ConfigError, match=r"steps is \(3, 0\)"):
        check(Settings(0.0, (3, 0)), COUNT, "steps")


@pytest.mark.parametrize("kind", settings_classes(), ids=lambda kind: kind.__name__)
def test_defaults_and_presets_are_within_bounds(kind: type) -> None:
    default_of(kind)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (GSConfig, "refine_lattice"), (SolverConfig, "lattice"), (TwistFieldConfig, "lattice"), (TwistFieldConfig, "stored_lattice"),
        (GlobalOptimizationConfig, "gauge_lattice"),
    ],
)  # fmt: skip
def test_lattices_of_too_many_nodes_in_all_are_refused(kind: type, name: str) -> None:
    dataclasses.replace(default_of(kind), **{name: (250, 200, 2)})
    with pytest.raises(ConfigError, match=rf"{name} is \(200, 200, 200\), which makes 8,000,000 nodes"):
        dataclasses.replace(default_of(kind), **{name: (200, 200, 200)})


def lattice_names() -> set[str]:
    return {
        f.name
        for kind in settings_classes()
        for f in dataclasses.fields(kind)
        if typing.get_type_hints(kind)[f.name] == tuple[int, int, int]
    }


def test_every_triple_of_counts_is_a_lattice_that_is_bounded() -> None:
    assert lattice_names() == {"refine_lattice", "lattice", "stored_lattice", "gauge_lattice"}


def test_all_that_is_out_of_range_is_told_at_once() -> None:
    words = "--config.root-path x --config.twists.seed -1 --config.alignment.num-frames 1000000000000 --config.solver.cg-iterations 0"
    with pytest.raises(ConfigError) as caught:
        parse(FrameToModelICPConfig, words.split())
    assert all(part in caught.value.message for part in ("twists.seed is -1", "num_frames is 1000000000000", "cg_iterations is 0"))
    with pytest.raises(ConfigError, match=r"num_frames is 0.*holdout_every is 1"):
        parse(FrameToModelICPConfig, "--config.alignment.num-frames 0 --config.alignment.holdout-every 1".split())
    with pytest.raises(ConfigError, match=r"max_upload_mb is 0.*max_queue is 0"):
        parse_flat(WebConfig, "--max-upload-mb 0 --max-queue 0".split(), prog="web", description="")
    with pytest.raises(ConfigError, match="pose_ridge is inf"):
        parse(FrameToModelICPConfig, "--config.solver.pose-ridge inf".split())


def test_saved_settings_are_told_at_once_too(tmp_path: Path) -> None:
    (tmp_path / "saved.json").write_text('{"num_iters": 0, "sh_degree": 7, "lr_sh0": 1e9}')
    with pytest.raises(ConfigError) as caught:
        load_config_file(GSConfig, tmp_path / "saved.json")
    assert all(part in caught.value.message for part in ("num_iters is 0", "sh_degree is 7", "lr_sh0 is 1000000000.0"))


def test_next_to_nothing_is_nothing() -> None:
    """What is divided by must not overflow: 1e-300 is as little above 0 as 0 itself."""
    assert 1e-300 not in POSITIVE and 0.0 not in POSITIVE and 1e-9 in POSITIVE
