"""JSON files: those that must be there, and those that may be missing, damaged or half written."""

import json
from pathlib import Path
from typing import Any

from utils.errors import CorruptArtifactError, MissingArtifactError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        ArtifactError: missing, no plain file, or no JSON object.
    """
    if not path.exists():
        raise MissingArtifactError(f"{path} is missing", "run the stage that writes it again")
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no plain file")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptArtifactError(f"{path} is no JSON: {error}", "run the stage that writes it again") from error


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file that may be missing, damaged, or being written; empty then."""
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
