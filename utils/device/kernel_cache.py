"""Compiled Numba kernels on disk are thrown away once any kernel has changed.

Numba renews what it has compiled of a file when that file changes, but not when a kernel changes that it has inlined from another file:
after an update, callers would go on with the old one.
"""

import contextlib
import hashlib
from pathlib import Path

_STAMP = "kernels.sha256"


def drop_stale_kernels(package: Path) -> int:
    """Deletes what Numba has cached beside the code of a package, if a file with kernels is not as it was; returns how many files.

    Caches elsewhere (NUMBA_CACHE_DIR) are the user's. Nothing happens where the code cannot be written to: Numba then keeps its cache in
    the user's home.
    """
    sources = [(path, path.read_bytes()) for path in sorted(package.rglob("*.py"))]
    kernels = [(path, content) for path, content in sources if b"njit" in content]
    digest = hashlib.sha256()
    for path, content in kernels:
        digest.update(b"%s %d " % (str(path.relative_to(package)).encode(), len(content)) + content)
    stamp, now = package / "__pycache__" / _STAMP, digest.hexdigest()
    deleted = 0
    with contextlib.suppress(OSError):
        if stamp.is_file() and stamp.read_text() == now:
            return 0
        for folder in sorted({path.parent / "__pycache__" for path, _ in kernels}):
            for cached in [*folder.glob("*.nbi"), *folder.glob("*.nbc")]:
                cached.unlink(missing_ok=True)
                deleted += 1
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(now)
    return deleted
