"""The growing canonical model that frames are registered to."""

import numpy as np

from utils.points.surface import color_gradients, fit_normals, make_tree, nearest
from utils.types import Array


class CanonicalModel:
    """Points of all frames merged so far, with normals and colour gradients; what is in it never changes.

    Attributes:
        points: (N, 3) float32, units.
        normals: (N, 3) float32, of arbitrary sign, fitted when the point came in.
        gradients: (N, 3) float32 of intensity along the surface, likewise.
        intensity: (N,) float32.
        row_of_pixel: (F, H * W) int64 row of each frame's pixel, -1 where it is not in the model.
    """

    def __init__(self, frames: int, pixels: int, normal_neighbors: int, color_neighbors: int):
        self.points = np.zeros((0, 3), np.float32)
        self.normals = np.zeros((0, 3), np.float32)
        self.gradients = np.zeros((0, 3), np.float32)
        self.intensity = np.zeros(0, np.float32)
        self.row_of_pixel = np.full((frames, pixels), -1, np.int64)
        self._normal_neighbors, self._color_neighbors = normal_neighbors, color_neighbors

    def add(self, frame: int, points: Array, intensity: Array, pixel: Array) -> None:
        """Appends a frame's points (N, 3); normals and gradients of the new rows see the whole model."""
        self.row_of_pixel[frame, pixel] = len(self.points) + np.arange(len(points))
        self.points = np.concatenate([self.points, points.astype(np.float32)])
        self.intensity = np.concatenate([self.intensity, intensity])
        self.tree = make_tree(self.points)
        normals = fit_normals(self.tree, points, self._normal_neighbors)
        gradients = color_gradients(self.tree, self.intensity, points, normals, intensity, self._color_neighbors)
        self.normals = np.concatenate([self.normals, normals])
        self.gradients = np.concatenate([self.gradients, gradients])

    def nearest(self, points: Array, radius: float) -> tuple[Array, Array]:
        """Rows of `points` with a neighbour closer than `radius`, and the neighbours' rows in the model."""
        return nearest(self.tree, points, radius)
