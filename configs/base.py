"""The command line of every stage: `main(config: X)` through tyro, so flags read `--config.field`, nested ones `--config.group.field`.

This module and every module under `configs` import nothing but the standard library, so that `--help` answers in about a second.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import math
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from configs.ranges import all_at_once
from utils.errors import ConfigError

T = TypeVar("T")


def from_plain(cls: type[T], plain: dict[str, Any], where: str = "config", default: T | None = None) -> T:
    """A config dataclass from nested JSON values; missing fields keep the values of `default`, or else their defaults.

    Raises:
        ConfigError: an unknown key, named with its path.
    """
    if not isinstance(plain, dict):
        raise ConfigError(f"{where} is {_shown(plain)}", f"give an object with settings of {cls.__name__}")
    hints = get_type_hints(cls)
    plain = _nested(plain, aliases_of(cls))
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in plain.items():
        if key not in known:
            raise ConfigError(f"{where}.{key} is not a setting of {cls.__name__}", f"known settings: {', '.join(sorted(known))}")
        values[key] = _decode(hints[key], value, f"{where}.{key}", _default_of(known[key]) if default is None else getattr(default, key))
    try:
        return cls(**values) if default is None else dataclasses.replace(default, **values)  # type: ignore[type-var]
    except TypeError as error:
        raise ConfigError(f"{where}: {error}", "give the missing settings in the file") from error


def _default_of(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _decode(hint: Any, value: Any, where: str, default: Any = None) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _decode(next(a for a in get_args(hint) if a is not type(None)), value, where, default)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, where, default)
    if origin in (tuple, list):
        parts = [part for part in get_args(hint) if part is not Ellipsis]
        if not isinstance(value, (tuple, list)) or (len(parts) > 1 and len(value) != len(parts)):
            raise _unfit(where, value, hint)
        decoded = [_decode(parts[min(i, len(parts) - 1)], v, where) for i, v in enumerate(value)]
        return tuple(decoded) if origin is tuple else decoded
    if origin is Literal:
        if value not in get_args(hint):
            raise _unfit(where, value, hint)
        return value
    kinds: dict[type, Any] = {Path: str, float: (int, float)}
    if isinstance(hint, type) and (not isinstance(value, kinds.get(hint, hint)) or (isinstance(value, bool) and hint is not bool)):
        raise _unfit(where, value, hint)
    return Path(value) if hint is Path else value


def _unfit(where: str, value: Any, hint: Any) -> ConfigError:
    wanted = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    return ConfigError(f"{where} is {_shown(value)}", f"give a value of the kind {wanted}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:76] + " ..."


def aliases_of(cls: type) -> dict[str, str]:
    """Earlier names of settings -> where the setting is now, as a path with dots, or "" where it does nothing any more.

    A config class declares them as `ALIASES`.
    """
    return getattr(cls, "ALIASES", {})


def without_aliases(cls: type, args: list[str]) -> list[str]:
    """The command line with every earlier name of a flag replaced by the present one, and without flags that do nothing any more."""
    aliases, words, skip = aliases_of(cls), [], False
    for word in args:
        name, equals, value = word.partition("=")
        if skip and not word.startswith("--"):
            continue
        setting = name.removeprefix("--config.").replace("-", "_")
        negated = "no_" if setting.startswith("no_") else ""
        target = aliases.get(setting.removeprefix(negated)) if name.startswith("--config.") else None
        skip = target == "" and not equals
        if target is None:
            words.append(word)
        elif target:
            group, _, field = target.rpartition(".")
            words.append(f"--config.{group}.{negated}{field}".replace("_", "-") + equals + value)
    return words


def _nested(plain: dict[str, Any], aliases: dict[str, str]) -> dict[str, Any]:
    """Saved settings with those under an earlier name moved to where they are now."""
    nested = {key: value for key, value in plain.items() if key not in aliases}
    for key in plain.keys() & aliases.keys():
        if aliases[key]:
            group, _, field = aliases[key].rpartition(".")
            nested[group] = {field: plain[key]} | nested.get(group, {})
    return nested


def load_config_file(cls: type[T], path: Path) -> T:
    """A config from a JSON file.

    Raises:
        ConfigError: the file is missing, is no JSON, or has an unknown key.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no plain file")
        plain = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read --config-file {path}: {str(error)[:200]}", "give a JSON file with settings") from error
    with all_at_once():
        config = from_plain(cls, plain)
    return sensible(config)


def sensible(config: T) -> T:
    """The settings themselves if every number in them is finite; all that are not are named at once.

    Raises:
        ConfigError: numbers that are infinite, or none: a program may set some of them so, a person hardly means it.
    """
    wrong = dict.fromkeys(f"{name} is {value}" for name, value in _numbers(config, "") if not math.isfinite(value))
    if wrong:
        raise ConfigError("; ".join(wrong), "give finite numbers")
    return config


def _numbers(value: Any, name: str) -> typing.Iterator[tuple[str, float]]:
    """Every number with a point in nested settings, with its path."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _numbers(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _numbers(entry, name)
    elif isinstance(value, float):
        yield name, value


def explained(parser: Callable[[], T], prog: str | None) -> T:
    """What a parser of the command line returns; what it refuses becomes an error like any other.

    Raises:
        ConfigError: flags or values that are not understood.
    """
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words):
            return parser()
    except SystemExit as ended:
        if not ended.code:  # --help
            raise
        text = " ".join(line.strip(" \u2502\u2500\u256d\u256e\u2570\u256f\t") for line in words.getvalue().splitlines())
        told = " ".join(text.split()) or "the command line is not understood"
        raise ConfigError(told, f"{prog or 'the command'} --help lists all flags and what they take") from None


def parse(
    cls: type[T], args: list[str] | None = None, *, prog: str | None = None, description: str | None = None, default: T | None = None
) -> T:
    """The config from the command line; `--config-file FILE.json` or `default` set the values that flags then override."""
    import tyro

    args = list(sys.argv[1:] if args is None else args)
    if "--config-file" in args:
        at = args.index("--config-file")
        if at + 1 == len(args):
            raise ConfigError("--config-file needs a path", "for example: --config-file run.json")
        default = load_config_file(cls, Path(args[at + 1]))
        del args[at : at + 2]

    def main(config: Any) -> Any:
        return config

    main.__annotations__["config"] = cls
    main.__doc__ = description or cls.__doc__
    if default is not None:
        main.__defaults__ = (default,)
    with all_at_once():
        config = typing.cast(T, explained(lambda: tyro.cli(main, args=without_aliases(cls, args), prog=prog), prog))
    return sensible(config)


def parse_flat(cls: type[T], args: list[str], *, prog: str, description: str, underscores: bool = True) -> T:
    """The config from a command line whose flags have no `--config.` before them; help spells them with underscores or hyphens."""
    import tyro

    with all_at_once():
        config = explained(lambda: tyro.cli(cls, args=args, prog=prog, description=description, use_underscores=underscores), prog)
    return sensible(config)


def cli(cls: type[Any], target: str, prog: str, parser: Callable[[], Any] | None = None) -> None:
    """Entry point of a stage: parses the flags, then imports and runs `target` ("module:function", called with config and reporter).

    Args:
        cls: the settings.
        target: what to run.
        prog: how the command is called.
        parser: reads the command line; `parse` by default.
    """
    from utils.runtime import run_stage

    def work() -> None:
        config = parse(cls, prog=prog) if parser is None else parser()
        module, _, name = target.partition(":")
        run: Callable[..., Any] = getattr(importlib.import_module(module), name)
        from utils.reporting import ConsoleReporter

        with ConsoleReporter() as report:
            print(run(config, report))

    run_stage(work)
