"""Every number in every settings class is checked: what makes no sense is refused with its name, not met later as a traceback."""

import dataclasses
import importlib
import math
import pkgutil
import typing
from pathlib import Path

import pytest

import configs
from configs.ranges import COUNT, POSITIVE, Range, check
from utils.errors import ConfigError

# Numbers that may be anything: seeds, and those whose help says what values below 1 mean.
FREE = {"seed", "max_points", "max_frames", "override_width", "override_height", "EvalConfig.target_num_points"}
GIVEN = {"root_path": Path(), "scenes": "clips", "input_video": (Path("clip.mp4"),)}


def settings_classes() -> list[type]:
    modules = [importlib.import_module(f"configs.{m.name}") for m in pkgutil.iter_modules(configs.__path__)]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type) and dataclasses.is_dataclass(value)}
    return sorted((c for c in found if c.__name__.endswith("Config")), key=lambda c: c.__name__)


def default_of(kind: type) -> object:
    return kind(**{f.name: GIVEN[f.name] for f in dataclasses.fields(kind) if f.name in GIVEN})


def numbers() -> list[tuple[type, str, object]]:
    """Class, field and a value of its type that is far too small; for floats NaN too."""
    cases: list[tuple[type, str, object]] = []
    for kind in settings_classes():
        hints = typing.get_type_hints(kind)
        for name in (f.name for f in dataclasses.fields(kind)):
            parts = {hints[name], *typing.get_args(hints[name])}
            if bool in parts or not parts & {int, float} or FREE & {name, f"{kind.__name__}.{name}"}:
                continue
            bad = [-(10**9)] + ([math.nan] if float in parts else [])
            arity = len([a for a in typing.get_args(hints[name]) if a in (int, float)])
            wrapped = typing.get_origin(hints[name]) is tuple
            cases += [(kind, name, (value,) * arity if wrapped else value) for value in bad]
    return cases


def test_numbers_are_found() -> None:
    assert {kind.__name__ for kind, _, _ in numbers()} >= {"GSConfig", "IcpConfig", "LeaveOneOutConfig", "SolverConfig", "EvalConfig"}
    assert len(numbers()) > 200


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
    assert refused.value.hint == "give a value above 0"
    with pytest.raises(ConfigError, match=r"steps is \(3, 0\)"):
        check(Settings(0.0, (3, 0)), COUNT, "steps")
