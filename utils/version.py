"""The version of this program; the package's metadata and `video_to_world.__version__` take it from here."""

VERSION = "0.2.0"
