"""Pictures of depth, normals and clouds for people to look at; uint8 sRGB arrays, no files."""

import cv2
import numpy as np

from utils.types import Array

_LABEL_HEIGHT = 22


def depth_range(depth: Array) -> tuple[float, float]:
    """Nearest and farthest depth worth a colour: the 2nd and 98th percentile of the known depths."""
    known = depth[np.isfinite(depth) & (depth > 0)]
    if not known.size:
        return 1.0, 2.0
    near, far = np.percentile(known, [2, 98])
    return float(near), float(max(far, near * 1.001))


def colorize_depth(depth: Array, near: float, far: float) -> Array:
    """(h, w, 3) uint8: near is warm, far is cold, unknown is black; even steps in inverse depth."""
    known = np.isfinite(depth) & (depth > 0)
    inverse = 1.0 / np.where(known, depth, far)
    share = np.clip((inverse - 1 / far) / (1 / near - 1 / far), 0, 1)
    color = cv2.applyColorMap((share * 255 + 0.5).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    return np.where(known[..., None], color, 0).astype(np.uint8)


def colorize_normals(normal: Array) -> Array:
    """(h, w, 3) uint8 of camera-space normals: x to red, up to green, towards the camera to blue; black where there is none."""
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    unit = normal / np.maximum(length, 1e-9) * np.array([1, -1, -1])
    return np.where(length > 0.05, (unit * 0.5 + 0.5) * 255 + 0.5, 0).astype(np.uint8)


def fit_width(image: Array, width: int) -> Array:
    """The image at this width if it is wider, else unchanged."""
    if image.shape[1] <= width:
        return image
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def resized_to(image: Array, other: Array) -> Array:
    """The image at the size of another."""
    h, w = other.shape[:2]
    return image if image.shape[:2] == (h, w) else cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)


def disagreement(image: Array, render: Array) -> Array:
    """(h, w, 3) uint8: the image in grey, red where a render of the same view differs from it over more than a few pixels.

    Full red is a difference of a fifth of the range and more.
    """
    difference = np.abs(image.astype(np.float32) - resized_to(render, image).astype(np.float32)).max(axis=-1) / 255
    radius = max(1.0, image.shape[1] / 100)
    share = np.clip(cv2.GaussianBlur(difference, (0, 0), radius) / 0.2, 0, 1)[..., None]
    grey = image.astype(np.float32).mean(axis=-1, keepdims=True).repeat(3, axis=-1) * 0.7 + 40
    return ((1 - share) * grey + share * np.array([225.0, 40.0, 30.0]) + 0.5).astype(np.uint8)


def labelled(image: Array, text: str) -> Array:
    """The image under a dark strip with a line of text."""
    strip = np.full((_LABEL_HEIGHT, image.shape[1], 3), 24, np.uint8)
    cv2.putText(strip, text, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (235, 235, 235), 1, cv2.LINE_AA)
    return np.concatenate([strip, image])


def grid(rows: list[list[Array]], gap: int = 4) -> Array:
    """Images of one size in rows and columns on dark ground."""
    h, w = rows[0][0].shape[:2]
    sheet = np.full((len(rows) * (h + gap) - gap, len(rows[0]) * (w + gap) - gap, 3), 24, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            sheet[r * (h + gap) : r * (h + gap) + h, c * (w + gap) : c * (w + gap) + w] = image
    return sheet


def plan_basis(up: Array, forward: Array) -> Array:
    """(3, 3) rows right, up, back of a level viewer who looks along `forward` made horizontal."""
    back = -(forward - (forward @ up) * up)
    length = np.linalg.norm(back)
    if length < 1e-6:  # looking straight up or down: any horizontal direction will do
        back = np.cross(up, np.eye(3)[np.argmin(np.abs(up))])
        length = np.linalg.norm(back)
    back = back / length
    return np.stack([np.cross(up, back), up, back])


def scatter(
    horizontal: Array, vertical: Array, colors: Array, order: Array, bounds: tuple[float, float, float, float], width: int
) -> Array:
    """(h, width, 4) uint8 picture of points on transparent ground; vertical axis upwards.

    Args:
        horizontal: (N,) coordinate to the right.
        vertical: (N,) coordinate upwards.
        colors: (N, 3) uint8.
        order: (N,) larger is painted later.
        bounds: left, right, bottom, top of the picture.
        width: in pixels; the height follows.
    """
    left, right, bottom, top = bounds
    # A picture taller than wide is made square by more room at the sides.
    room = max(0.0, (top - bottom) - (right - left)) / 2
    left, right = left - room, right + room
    pixels = width / max(right - left, 1e-9)
    height = int(np.clip(round((top - bottom) * pixels), 40, width))
    x = np.floor((horizontal - left) * pixels).astype(np.int64)
    y = np.floor((top - vertical) * pixels).astype(np.int64)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y, colors, order = x[inside], y[inside], colors[inside], order[inside]
    sequence = np.argsort(order, kind="stable")
    picture = np.zeros((height, width, 4), np.uint8)
    picture[y[sequence], x[sequence], :3] = colors[sequence]
    picture[y, x, 3] = 255
    return picture


def normals_of_depth(depth: Array, K: Array) -> Array:
    """(h, w, 3) camera-space unit normals that face the camera, from neighbouring depths; 0 where a neighbour is unknown.

    3DGS has no normals of its own: these are of the surface its depth describes.
    """
    h, w = depth.shape
    x, y = np.meshgrid((np.arange(w) + 0.5 - K[0, 2]) / K[0, 0], (np.arange(h) + 0.5 - K[1, 2]) / K[1, 1])
    points = np.stack([x * depth, y * depth, depth], axis=-1)
    normal = np.cross(points[2:, 1:-1] - points[:-2, 1:-1], points[1:-1, 2:] - points[1:-1, :-2])
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    known = (depth[2:, 1:-1] > 0) & (depth[:-2, 1:-1] > 0) & (depth[1:-1, 2:] > 0) & (depth[1:-1, :-2] > 0)
    out = np.zeros((h, w, 3))
    out[1:-1, 1:-1] = np.where(known[..., None] & (length > 0), normal / np.maximum(length, 1e-12), 0)
    return out
