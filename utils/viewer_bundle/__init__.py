"""The splat viewer that runs in the browser: our own WebGL 2 code, no package and no network needed.

README.md says what it offers and how to use it; the modules are also served as they are.
May import: nothing.
Start: `bundled`; of the JavaScript, createViewer in viewer.js.
"""

import re
from pathlib import Path

FOLDER = Path(__file__).parent
# In the order in which one file needs them.
MODULES = ("pose.js", "splat_files.js", "depth_order.js", "renderer.js", "controls.js", "viewer.js")
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+\.js)";\n', re.MULTILINE)


def bundled(modules: tuple[str, ...] = MODULES) -> str:
    """The modules as one script that needs no import, for pages that are a single file.

    Modules use nothing but `import {...} from "./name.js";` and `export` before a declaration, so joining them is dropping those.

    Raises:
        ValueError: a module imports one that is not listed before it.
    """
    parts: list[str] = []
    for i, name in enumerate(modules):
        source = (FOLDER / name).read_text(encoding="utf-8")
        missing = set(_IMPORT.findall(source)) - set(modules[:i])
        if missing:
            raise ValueError(f"{name} imports {', '.join(sorted(missing))}, not listed before it")
        parts.append(re.sub(r"^export ", "", _IMPORT.sub("", source), flags=re.MULTILINE))
    return "\n".join(parts)
