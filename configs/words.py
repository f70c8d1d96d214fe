"""What a person types: a command line spelled out in full, and a help text of one screen."""

import ast
import dataclasses
import inspect
import shutil
import textwrap
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

_PLAIN = ("--config", "--help")


def spelled_out(argv: list[str]) -> list[str]:
    """The command line with the sources that stand before all flags as flags, and every `--X` as `--config.X`."""
    first_flag = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    flags = [f"--config.{word[2:]}" if word.startswith("--") and not word.startswith(_PLAIN) else word for word in argv[first_flag:]]
    sources = argv[:first_flag]
    return [_flag_of(sources), *sources, *flags] if sources else flags


def _flag_of(sources: list[str]) -> str:
    """Clips, a folder of clips, a folder of frames, or a scene that exists already."""
    folder = Path(sources[0])
    if len(sources) > 1 or not folder.is_dir():
        return "--config.input-video"
    if (folder / "exports" / "npz").is_dir():
        return "--config.root-path"
    from utils.scene.media import CLIP_SUFFIXES

    holds_clips = any(path.suffix.lower() in CLIP_SUFFIXES for path in folder.iterdir())
    return "--config.input-video" if holds_clips else "--config.frames-dir"


def short_help(default: Any, settings: tuple[str, ...], introduction: str, closing: str) -> str:
    """A help text of some settings of a configuration, by their dotted names, with the values in force.

    Args:
        default: the configuration that the flags change.
        settings: names, in order.
        introduction: what stands before the flags.
        closing: what stands after them.
    """
    width = min(110, shutil.get_terminal_size().columns)
    lines = [introduction, ""]
    for name in settings:
        *groups, field = name.split(".")
        owner = default
        for group in groups:
            owner = getattr(owner, group)
        value, hint = getattr(owner, field), typing.get_type_hints(type(owner))[field]
        kind = "{" + ",".join(get_args(hint)) + "}" if get_origin(hint) is Literal else "" if hint is bool else field.split("_")[-1].upper()
        text = _documented(type(owner))[field]
        if value not in (None, False, "", ()):
            text += f" (now: {value})"
        lines.append(f"  --{name.replace('_', '-')} {kind}".rstrip())
        lines += textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="      ")
    return "\n".join([*lines, "", closing])


def _documented(cls: type) -> dict[str, str]:
    """The string under each field of a dataclass, on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef) and dataclasses.is_dataclass(cls)
    texts = {}
    for this, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(this, ast.AnnAssign) and isinstance(this.target, ast.Name) and isinstance(after, ast.Expr):
            texts[this.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return texts
