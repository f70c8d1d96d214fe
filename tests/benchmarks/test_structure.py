"""Figures of the code's shape, on sources of known shape."""

import ast

from benchmarks.structure import documented, functions, sources


def test_lengths_and_docstrings_are_counted() -> None:
    methods = '    def f(self):\n        """Of f."""\n        return 1\n\n    def _g(self):\n        pass\n'
    tree = ast.parse(f'"""Of the module."""\n\nclass A:\n{methods}')
    assert sorted(functions(tree)) == [(2, "_g"), (3, "f")]
    assert list(documented(tree)) == [True, False, True]  # module, class, method; the private one does not count


def test_sources_are_those_of_the_project() -> None:
    names = {path.as_posix() for path in sources()}
    assert {"run_reconstruction.py", "utils/types.py", "tests/benchmarks/test_structure.py", "benchmarks/structure.py"} <= names
    assert not any(name.startswith((".", "demo_world")) for name in names)
