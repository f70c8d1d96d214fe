"""Every error that a user can cause or meet: one sentence of what and where, and a hint that says what to do next.

`utils.runtime.run_stage` prints them as `error:` and `hint:` and exits with 2. Anything else is a bug and keeps its traceback.
"""


class V2WError(Exception):
    """An error with a remedy.

    Args:
        message: what is wrong and where, expected against got.
        hint: what to do next, in the imperative.
    """

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(V2WError):
    """A setting that cannot be used, or two that contradict each other."""


class InputError(V2WError):
    """A clip, frame folder or image that cannot be used."""


class ArtifactError(V2WError):
    """A file or folder of the scene that cannot be used."""


class MissingArtifactError(ArtifactError):
    """A stage's input is not there; the hint names the command that makes it."""


class CorruptArtifactError(ArtifactError):
    """A file is truncated, has wrong keys, shapes or values."""


class SchemaVersionError(ArtifactError):
    """An artifact was written by another version of its format."""


class ConventionError(ArtifactError):
    """An artifact uses other frames, pixel centres or orders than this program."""


class StaleArtifactError(ArtifactError):
    """An input was made again after the artifact that was derived from it."""


class SceneBusyError(ArtifactError):
    """Another process or thread writes the scene."""


class BackendError(V2WError):
    """A named backend cannot be used."""


class UnknownBackendError(BackendError):
    """No backend of that name."""


class MissingDependencyError(BackendError):
    """The backend's package, device or weights are not there."""


class GeometryError(V2WError):
    """The images or points do not determine the geometry that was asked for."""


class DegenerateCloudError(GeometryError):
    """Too few or degenerate points."""


class NoOverlapError(GeometryError):
    """Frames that share nothing, so nothing can be aligned."""


class OptimizationError(V2WError):
    """An optimisation failed."""


class NonFiniteError(OptimizationError):
    """A loss or gradient became NaN or infinite; the message names step, term and frame."""
