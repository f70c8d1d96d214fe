"""The shape of the code: files and lines, the largest folders, the longest functions, and docstrings of public names.

python -m benchmarks.structure
"""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from utils.runtime import run_stage

ROOT = Path(__file__).resolve().parents[1]
APART = ("tests", "benchmarks")  # counted for themselves
_LONG = 60  # lines that a function should not exceed


def sources() -> dict[Path, str]:
    """Every Python file of the project, relative, and its text; hidden folders, build folders and results do not count."""
    tops = [path.parent for path in ROOT.glob("*/__init__.py")] + [ROOT / name for name in APART]
    files = {path for top in tops for path in top.rglob("*.py")} | set(ROOT.glob("*.py"))
    return {path.relative_to(ROOT): path.read_text() for path in sorted(files)}


def functions(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines and name of every function of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1, node.name


def documented(node: ast.Module | ast.ClassDef) -> Iterator[bool]:
    """Whether a module or class, and each public function, class and method in it, has a docstring."""
    yield ast.get_docstring(node) is not None
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from documented(child)
        elif isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
            yield ast.get_docstring(child) is not None


def main() -> None:
    files = sources()
    trees = {path: ast.parse(text) for path, text in files.items()}
    code = [path for path in files if path.parts[0] not in APART]
    folders = Counter(path.parent.as_posix() for path in code)
    lengths = sorted((*own, path.as_posix()) for path in code for own in functions(trees[path]))
    public = [has for path in code for has in documented(trees[path])]
    for name, chosen in (("code", code), *((part, [p for p in files if p.parts[0] == part]) for part in APART)):
        print(f"{name}: {len(chosen)} files, {sum(files[path].count(chr(10)) for path in chosen)} lines")
    print("largest folders: " + ", ".join(f"{folder} {count}" for folder, count in folders.most_common(4)))
    print("longest files: " + ", ".join(f"{p} {files[p].count(chr(10))}" for p in sorted(code, key=lambda p: -files[p].count("\n"))[:3]))
    print(
        f"functions: {len(lengths)}, median {lengths[len(lengths) // 2][0]} lines, 90 % within {lengths[int(0.9 * len(lengths))][0]},"
        f" {sum(lines > _LONG for lines, *_ in lengths)} over {_LONG}; longest: "
        + ", ".join(f"{name} {lines}" for lines, name, _ in reversed(lengths[-3:]))
    )
    print(f"public names with a docstring: {100 * sum(public) / len(public):.1f} %")


if __name__ == "__main__":
    run_stage(main)
