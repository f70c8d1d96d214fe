"""The places of the synthetic world, and the camera path through each.

Axes are the camera's at the start of the path: x right, y down, z forward. What a seed changes: sizes, positions, turns, which things
stand where, every material. What it does not change: the kind of place and that the path stays clear of things.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from utils.errors import ConfigError
from utils.synthetic.raycast import BOX, CYLINDER, ELLIPSOID, Primitives
from utils.synthetic.texture import BRICKS, FOLIAGE, PATCHES, PLANKS, PLASTER, Materials, with_texture
from utils.types import Array

LAYOUTS = ("room", "corridor", "object", "outdoor", "orbit", "forgetful")

# Frames in which an orbit goes round once, at a reference clip's speed.
ORBIT_FRAMES = 64

REFERENCE_FRAMES = 28  # frames that cover a progress of 1 along the path
# Progress at which the path turns back, in reference clips; past it the camera revisits what it has seen.
TURNING_PROGRESS = 1.6
# Share of the random palettes' chroma that is kept: 1 looks like a toy shop.
SATURATION = 0.6
# Occluders stand between these shares of the way from the camera to what it looks at ...
OCCLUDER_REACH = (0.22, 0.5)
# ... across this half width, and at least so far from every camera; both in lengths of that way.
OCCLUDER_SPREAD = 0.6
OCCLUDER_CLEARANCE = 0.14
OCCLUDER_TRIES = 200


@dataclass(frozen=True)
class Path:
    """A camera path: an eased run from start to end and back, with a sway that breaks its symmetry.

    Attributes:
        eye: (2, 3) camera centre at the start and at the turning point.
        target: (2, 3) point that the optical axis meets, at the start and at the turning point.
        bulge: (3,) how far the middle of the run leaves the straight line, which makes it an arc.
        sway: (3,) amplitude of the sway, scene units.
    """

    eye: Array
    target: Array
    bulge: Array
    sway: Array

    def c2w(self, progress: float, aside: tuple[float, float] = (0.0, 0.0)) -> Array:
        """(4, 4) world from camera at a progress of 0 (start) to `TURNING_PROGRESS` (far end) and on (back).

        Args:
            progress: in reference clips (28 frames).
            aside: offset of the centre to the right and down, scene units, with the same target.
        """
        share = np.sin(0.5 * np.pi * progress / TURNING_PROGRESS)
        wave = np.array([np.sin(5.1 * progress + 0.4), np.sin(3.7 * progress + 1.9), np.sin(4.3 * progress + 3.0)])
        eye = (1 - share) * self.eye[0] + share * self.eye[1] + 4 * share * (1 - share) * self.bulge + wave * self.sway
        target = (1 - share) * self.target[0] + share * self.target[1] + 0.6 * wave[[2, 0, 1]] * self.sway
        rotation = look_at(target - eye, roll=0.012 * np.sin(4.7 * progress))
        c2w = np.eye(4)
        c2w[:3, :3] = rotation
        c2w[:3, 3] = eye + aside[0] * rotation[:, 0] + aside[1] * rotation[:, 1]
        if aside != (0.0, 0.0):
            c2w[:3, :3] = look_at(target - c2w[:3, 3], roll=0.0)
        return c2w


@dataclass(frozen=True)
class Orbit:
    """A circle around a vertical axis, looking inwards or outwards, which closes after `ORBIT_FRAMES` of a reference clip.

    Attributes:
        target: (1, 3) point that the optical axis meets, before or behind the camera.
        radius: of the circle, scene units.
        height: of the camera above the target, scene units; it sways by a tenth of it.
        outward: the camera looks away from the target, at the height it is at.
    """

    target: Array
    radius: float
    height: float
    outward: bool = False

    def c2w(self, progress: float, aside: tuple[float, float] = (0.0, 0.0)) -> Array:
        """(4, 4) world from camera; arguments as for `Path.c2w`."""
        angle = orbit_angle(progress)
        height = self.height * (1 + 0.1 * np.sin(2 * angle))
        eye = self.target[0] + np.array([-self.radius * np.sin(angle), -height, -self.radius * np.cos(angle)])
        c2w = np.eye(4)
        c2w[:3, :3] = look_at(self._forward(eye), roll=0.0)
        c2w[:3, 3] = eye + aside[0] * c2w[:3, 0] + aside[1] * c2w[:3, 1]
        if aside != (0.0, 0.0):
            c2w[:3, :3] = look_at(self._forward(c2w[:3, 3]), roll=0.0)
        return c2w

    def _forward(self, eye: Array) -> Array:
        inwards: Array = self.target[0] - eye
        return np.array([-1.0, 0.0, -1.0]) * inwards if self.outward else inwards


def orbit_angle(progress: float) -> float:
    """How far round an `Orbit` has come, radians."""
    return 2 * np.pi * progress * (REFERENCE_FRAMES - 1) / ORBIT_FRAMES


def orbit_progress(angle: float) -> float:
    """The inverse of `orbit_angle`."""
    return angle * ORBIT_FRAMES / (2 * np.pi * (REFERENCE_FRAMES - 1))


def look_at(forward: Array, roll: float) -> Array:
    """(3, 3) world from camera with z along `forward`, y as far down as it can be, then turned by `roll` radians about z."""
    z = forward / np.linalg.norm(forward)
    x = np.cross(np.array([0.0, 1.0, 0.0]), z)
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    cosine, sine = np.cos(roll), np.sin(roll)
    return np.stack([cosine * x + sine * y, cosine * y - sine * x, z], axis=1)


def yaw(angle: float) -> Array:
    """(3, 3) rotation about the vertical (y) axis."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])


def tilt(angle: float) -> Array:
    """(3, 3) rotation about the z axis."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


@dataclass
class SceneBuilder:
    """Collects shapes and materials. Object 0 is the fixed structure; `new_object` starts a thing that can move by itself."""

    rng: np.random.Generator
    shapes: list[tuple[int, Array, Array, Array, int, int]] = field(default_factory=list)
    materials: list[tuple[int, float, Array, Array, Array, float]] = field(default_factory=list)
    spans: dict[int, tuple[float, float]] = field(default_factory=dict)
    current: int = 0
    num_objects: int = 1

    def new_object(self) -> None:
        """What is added from here on belongs to one new object."""
        self.current = self.num_objects
        self.num_objects += 1

    def structure(self) -> None:
        """What is added from here on belongs to the fixed structure."""
        self.current = 0

    def material(self, kind: int, size: float, hue: tuple[float, float, float] | None = None, spread: float = 0.45) -> int:
        """A new material and its index.

        Args:
            kind: pattern, see `utils.synthetic.texture`.
            size: extent of what it covers, scene units; patterns and the coarsest noise follow it.
            hue: sRGB 0..1 around which the three palette colours scatter; random if None.
            spread: how far they scatter.
        """
        rng = self.rng
        base = np.array(hue) if hue is not None else rng.uniform(0.25, 0.75, 3)
        shades = np.array([0.55, 1.0, 1.5])[rng.permutation(3)][:, None]
        palette = base * shades + rng.uniform(-0.5, 0.5, (3, 3)) * spread
        grey = palette.mean(1, keepdims=True)
        palette = np.clip(grey + SATURATION * (palette - grey), 0.08, 0.9)
        proportions = {
            PLASTER: (0.35, 0.35, 0.35),
            BRICKS: (0.2, 0.075, 0.2),
            PLANKS: (0.7, 0.12, 0.12),
            PATCHES: (0.13, 0.13, 0.13),
            FOLIAGE: (0.1, 0.1, 0.1),
        }[kind]
        cell = np.array(proportions) * size * rng.uniform(0.8, 1.25)
        contrast = {PLASTER: 0.26, BRICKS: 0.2, PLANKS: 0.2, PATCHES: 0.2, FOLIAGE: 0.34}[kind]
        self.materials.append((kind, 0.3 * size, cell, rng.uniform(-50.0, 50.0, 3), palette, contrast))
        return len(self.materials) - 1

    def random_material(self, size: float) -> int:
        """A material of random kind and colour for a thing of this size."""
        return self.material(int(self.rng.choice([PLASTER, BRICKS, PLANKS, PATCHES, PATCHES])), 1.5 * size)

    def add(self, kind: int, center: Array, half: Array, material: int, rotation: Array | None = None) -> None:
        """One primitive."""
        turn = np.eye(3) if rotation is None else rotation
        self.shapes.append((kind, np.asarray(center, float), np.asarray(half, float), turn, material, self.current))

    def box(self, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], material: int) -> None:
        """An axis-aligned box from its bounds."""
        bounds = np.array([x, y, z], float)
        self.add(BOX, bounds.mean(1), 0.5 * (bounds[:, 1] - bounds[:, 0]), material)

    def primitives(self) -> Primitives:
        """The table of all shapes, posed where the canonical world has them."""
        kind, center, half, rotation, material, object_id = (list(column) for column in zip(*self.shapes, strict=True))
        centers, halves, turns = np.array(center), np.array(half), np.array(rotation)
        kinds = np.array(kind, np.int64)
        radius = np.where(kinds == ELLIPSOID, halves.max(1), np.linalg.norm(halves, axis=1))
        return Primitives(
            kind=kinds,
            half=halves,
            material=np.array(material, np.int64),
            object_id=np.array(object_id, np.int64),
            canonical_center=centers,
            canonical_map=np.ascontiguousarray(turns * halves[:, None, :]),
            posed_center=centers.copy(),
            posed_inverse=np.ascontiguousarray(np.swapaxes(turns, 1, 2) / halves[:, :, None]),
            radius=radius,
        )

    def span_table(self) -> Array | None:
        """(N, 2) progress within which each object is there; None if all always are."""
        if not self.spans:
            return None
        return np.array([self.spans.get(index, (-np.inf, np.inf)) for index in range(self.num_objects)])

    def material_table(self) -> Materials:
        """The table of all materials."""
        kind, wavelength, cell, offset, palette, contrast = (list(column) for column in zip(*self.materials, strict=True))
        return Materials(
            kind=np.array(kind, np.int64),
            wavelength=np.array(wavelength),
            cell=np.array(cell),
            offset=np.array(offset),
            palette=np.array(palette),
            contrast=np.array(contrast),
        )


@dataclass(frozen=True)
class Place:
    """A built layout.

    Attributes:
        shapes: all of them.
        materials: of the shapes.
        path: of the camera.
        spans: (N, 2) progress from which and up to which each object is there; None: all are always there.
    """

    shapes: Primitives
    materials: Materials
    path: Path | Orbit
    spans: Array | None = None

    def present(self, progress: float) -> Array:
        """(N,) bool, the objects that are there at a progress along the path."""
        if self.spans is None:
            return np.ones(int(self.shapes.object_id.max()) + 1, bool)
        return (self.spans[:, 0] <= progress) & (progress < self.spans[:, 1])


def build_place(layout: str, seed: int, *, occluders: int = 0, texture: str = "rich") -> Place:
    """The place of a layout and seed.

    Args:
        layout: one of `LAYOUTS`.
        seed: of everything random.
        occluders: posts near the camera, in front of the rest.
        texture: see `texture.with_texture`.

    Raises:
        ConfigError: unknown layout.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"unknown layout '{layout}'", f"choose one of {', '.join(LAYOUTS)}")
    builder = SceneBuilder(np.random.default_rng([LAYOUTS.index(layout), seed]))
    build: dict[str, Callable[[SceneBuilder], Path | Orbit]] = {
        "room": _room,
        "corridor": _corridor,
        "object": _object,
        "outdoor": _outdoor,
        "orbit": _orbit,
        "forgetful": _forgetful,
    }
    path = build[layout](builder)
    builder.rng = np.random.default_rng([LAYOUTS.index(layout), seed, 5])  # so that the rest does not depend on the occluders
    _posts(builder, path, occluders)
    return Place(builder.primitives(), with_texture(builder.material_table(), texture), path, builder.span_table())


def _posts(b: SceneBuilder, path: Path | Orbit, count: int) -> None:
    """Slender posts between the camera and what it looks at, each an object, off the camera's way.

    Raises:
        ConfigError: no room for so many.
    """
    eyes = np.stack([path.c2w(progress)[:3, 3] for progress in np.linspace(0, TURNING_PROGRESS, 24)])
    middle = path.c2w(0.5 * TURNING_PROGRESS)
    way = float(np.linalg.norm(path.target.mean(0) - middle[:3, 3]))
    for _ in range(OCCLUDER_TRIES):
        if count == 0:
            return
        forward = b.rng.uniform(*OCCLUDER_REACH) * way
        aside = b.rng.uniform(-1, 1) * OCCLUDER_SPREAD * forward
        center = middle[:3, 3] + forward * middle[:3, 2] + aside * middle[:3, 0]
        if np.linalg.norm((eyes - center)[:, [0, 2]], axis=1).min() < OCCLUDER_CLEARANCE * way:
            continue
        b.new_object()
        half = np.array([b.rng.uniform(0.006, 0.016) * way, b.rng.uniform(0.2, 0.4) * forward, b.rng.uniform(0.006, 0.016) * way])
        b.add(CYLINDER if b.rng.random() < 0.5 else BOX, center, half, b.random_material(0.15 * way))
        count -= 1
    if count:
        raise ConfigError(f"no room for {count} of the occluders", "ask for fewer")


def _shell(b: SceneBuilder, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], materials: dict[str, int]) -> None:
    """Walls, floor and ceiling of a closed room, as slabs 0.3 thick outside the bounds."""
    thick = 0.3
    wide = (x[0] - thick, x[1] + thick)
    b.box(wide, (y[1], y[1] + thick), (z[0] - thick, z[1] + thick), materials["floor"])
    b.box(wide, (y[0] - thick, y[0]), (z[0] - thick, z[1] + thick), materials["ceiling"])
    b.box(wide, (y[0], y[1]), (z[1], z[1] + thick), materials["back"])
    b.box(wide, (y[0], y[1]), (z[0] - thick, z[0]), materials["front"])
    b.box((x[0] - thick, x[0]), y, z, materials["left"])
    b.box((x[1], x[1] + thick), y, z, materials["right"])


def _table(b: SceneBuilder, center: tuple[float, float, float], half: tuple[float, float], height: float, turn: float) -> None:
    """A table whose top's upper face is `height` above `center` (on the floor)."""
    rotation = yaw(turn)
    wood = b.material(PLANKS, 1.4, (0.5, 0.34, 0.2), 0.3)
    base = np.array(center)
    b.add(BOX, base + np.array([0, 0.04 - height, 0]), np.array([half[0], 0.04, half[1]]), wood, rotation)
    for side in (-1, 1):
        for end in (-1, 1):
            leg = rotation @ np.array([side * (half[0] - 0.08), 0.0, end * (half[1] - 0.08)])
            b.add(BOX, base + leg + (0, 0.04 - 0.5 * height, 0), np.array([0.045, 0.5 * height - 0.04, 0.045]), wood, rotation)


def _thing(b: SceneBuilder, foot: Array, size: float) -> None:
    """A small object of random shape standing on a point."""
    rng = b.rng
    b.new_object()
    shape = rng.integers(4)
    turn = yaw(rng.uniform(-1.5, 1.5))
    height = size * rng.uniform(0.7, 1.3)
    material = b.random_material(size)
    if shape == 0:
        half = np.array([size * rng.uniform(0.4, 0.8), 0.5 * height, size * rng.uniform(0.4, 0.8)])
        b.add(BOX, foot - (0, 0.5 * height, 0), half, material, turn)
    elif shape == 1:
        b.add(CYLINDER, foot - (0, 0.5 * height, 0), np.array([0.4 * size, 0.5 * height, 0.4 * size]), material)
    elif shape == 2:
        b.add(ELLIPSOID, foot - (0, 0.5 * height, 0), np.array([0.5 * size, 0.5 * height, 0.5 * size]), material, turn)
    else:
        b.add(CYLINDER, foot - (0, 0.35 * height, 0), np.array([0.3 * size, 0.35 * height, 0.3 * size]), material)
        b.add(ELLIPSOID, foot - (0, 0.95 * height, 0), np.array([0.45, 0.4, 0.45]) * size, b.random_material(size))


def _picture(b: SceneBuilder, center: tuple[float, float, float], half: tuple[float, float], axis: int) -> None:
    """A framed picture on a wall whose normal is `axis` (0: x, 2: z); part of the wall."""
    frame = b.material(PLANKS, 0.5, (0.35, 0.25, 0.15), 0.2)
    canvas = b.material(PATCHES, 1.6 * max(half), None, 0.9)
    for grow, thick, material in ((0.05, 0.03, frame), (0.0, 0.045, canvas)):
        extent = np.array([half[0] + grow, half[1] + grow, half[0] + grow])
        extent[axis] = thick
        b.add(BOX, np.array(center), extent, material)


def _shelf(b: SceneBuilder, corner: tuple[float, float, float], width: float, height: float) -> None:
    """A bookshelf against the back wall; `corner` is its lower left front corner on the floor."""
    rng = b.rng
    b.new_object()
    wood = b.material(PLANKS, 1.2, (0.42, 0.28, 0.16), 0.25)
    x, floor, z = corner
    depth, rows = 0.32, 4
    for side in (x, x + width):
        b.box((side - 0.025, side + 0.025), (floor - height, floor), (z, z + depth), wood)
    b.box((x, x + width), (floor - height, floor), (z + depth - 0.03, z + depth), wood)
    for row in range(rows + 1):
        top = floor - row * height / rows
        b.box((x, x + width), (top - 0.04, top), (z, z + depth), wood)
        left = x + 0.04
        while row < rows and left < x + width - 0.16:
            thick = rng.uniform(0.07, 0.16)
            tall = height / rows * rng.uniform(0.5, 0.82)
            b.box((left, left + thick), (top - 0.04 - tall, top - 0.04), (z + rng.uniform(0.01, 0.08), z + 0.25), b.random_material(0.3))
            left += thick + rng.uniform(0.0, 0.05)
    b.structure()


def _room(b: SceneBuilder) -> Path:
    """A furnished room, seen on a sideways arc."""
    rng = b.rng
    left, right, back, floor = -rng.uniform(2.7, 3.1), rng.uniform(2.7, 3.1), rng.uniform(4.2, 4.8), 1.25
    ceiling = -1.5
    walls = [b.material(kind, 2.6, None, 0.35) for kind in rng.permutation([PLASTER, BRICKS, PATCHES])]
    surfaces = {
        "floor": b.material(PLANKS, 2.4, (0.5, 0.36, 0.24), 0.3),
        "ceiling": b.material(PLASTER, 3.0, (0.7, 0.68, 0.62), 0.25),
        "back": walls[0],
        "front": walls[1],
        "left": walls[1],
        "right": walls[2],
    }
    _shell(b, (left, right), (ceiling, floor), (-2.6, back), surfaces)
    b.box((-1.3, 1.2), (floor - 0.015, floor), (1.4, 3.4), b.material(PATCHES, 1.8, None, 0.8))
    shelf_left = rng.uniform(left + 0.15, -0.9)
    _shelf(b, (shelf_left, floor, back - 0.34), 1.4, 2.0)
    _picture(b, (rng.uniform(0.6, 1.2), -0.45, back), (rng.uniform(0.4, 0.6), 0.38), 2)
    _picture(b, (left, -0.4, rng.uniform(1.6, 3.0)), (0.5, 0.36), 0)
    _picture(b, (right, -0.35, rng.uniform(1.6, 3.0)), (0.45, 0.4), 0)
    b.new_object()
    table = np.array([rng.uniform(-0.3, 0.3), floor, rng.uniform(2.1, 2.5)])
    _table(b, (table[0], table[1], table[2]), (0.75, 0.45), 0.72, rng.uniform(-0.4, 0.4))
    for along in (-0.5, -0.1, 0.35):
        _thing(b, table + np.array([along, -0.72, rng.uniform(-0.2, 0.2)]), rng.uniform(0.2, 0.34))
    b.new_object()
    seat = np.array([rng.uniform(1.5, 1.9), floor, rng.uniform(2.6, 3.3)])
    cloth = b.material(PATCHES, 1.0, None, 0.5)
    turn = yaw(rng.uniform(0.5, 1.1))
    for offset, half in (((0, -0.25, 0), (0.5, 0.25, 0.45)), ((0, -0.62, 0.36), (0.5, 0.3, 0.12))):
        b.add(BOX, seat + turn @ np.array(offset), np.array(half), cloth, turn)
    for side in (-0.46, 0.46):
        b.add(BOX, seat + turn @ np.array([side, -0.38, 0.0]), np.array([0.09, 0.36, 0.45]), cloth, turn)
    _plant(b, np.array([left + 0.6, floor, rng.uniform(2.2, 3.2)]), 1.5)
    _thing(b, np.array([right - 0.6, floor, back - 0.6]), 0.8)
    _thing(b, np.array([rng.uniform(-1.6, -1.2), floor, rng.uniform(2.7, 3.2)]), 0.55)
    return Path(
        eye=np.array([[-0.75, -0.1, -0.9], [0.85, -0.25, -0.5]]),
        target=np.array([[-0.1, 0.15, 3.0], [0.15, 0.1, 3.2]]),
        bulge=np.array([0.0, 0.0, -0.15]),
        sway=np.array([0.02, 0.05, 0.05]),
    )


def _plant(b: SceneBuilder, foot: Array, height: float) -> None:
    """A pot, a stem and a crown of leaves, or a tree if it is tall."""
    rng = b.rng
    b.new_object()
    bark = b.material(PLANKS, 0.4 * height, (0.36, 0.26, 0.18), 0.2)
    leaves = b.material(FOLIAGE, 0.5 * height, (0.28, 0.45, 0.18), 0.35)
    b.add(CYLINDER, foot - (0, 0.3 * height, 0), np.array([0.035, 0.3, 0.035]) * height, bark)
    if height < 2.0:
        b.add(CYLINDER, foot - (0, 0.1 * height, 0), np.array([0.13, 0.1, 0.13]) * height, b.random_material(0.4))
    for _ in range(5):
        offset = np.array([rng.uniform(-0.16, 0.16), rng.uniform(-0.95, -0.6), rng.uniform(-0.16, 0.16)]) * height
        b.add(ELLIPSOID, foot + offset, rng.uniform(0.12, 0.22, 3) * height, leaves, yaw(rng.uniform(0, 3)))
    b.structure()


def _corridor(b: SceneBuilder) -> Path:
    """A deep corridor with pillars, doors, pictures and crates; the camera walks into it."""
    rng = b.rng
    half, length, floor, ceiling = rng.uniform(1.3, 1.5), rng.uniform(11.0, 13.0), 1.2, -1.35
    side_kinds = rng.permutation([BRICKS, PATCHES])
    surfaces = {
        "floor": b.material(BRICKS, 4.0, (0.46, 0.42, 0.38), 0.35),
        "ceiling": b.material(PLANKS, 2.4, (0.55, 0.48, 0.4), 0.25),
        "back": b.material(PATCHES, 3.0, None, 0.7),
        "front": b.material(PLASTER, 3.0),
        "left": b.material(side_kinds[0], 2.6, None, 0.4),
        "right": b.material(side_kinds[1], 2.6, None, 0.4),
    }
    _shell(b, (-half, half), (ceiling, floor), (-3.0, length), surfaces)
    pillar = b.material(BRICKS, 2.0, None, 0.4)
    for index, z in enumerate(np.arange(1.6, length - 0.8, 2.0)):
        for side in (-1, 1):
            inner, outer = side * half, side * (half - 0.22)
            b.box((min(inner, outer), max(inner, outer)), (ceiling, floor), (z - 0.16, z + 0.16), pillar)
        b.box((-half, half), (ceiling, ceiling + 0.16), (z - 0.12, z + 0.12), surfaces["ceiling"])
        wall = -half if index % 2 else half
        if rng.random() < 0.5:
            _picture(b, (wall, -0.2, z + 1.0), (rng.uniform(0.35, 0.5), 0.42), 0)
        else:
            door = b.material(PLANKS, 1.5, None, 0.4)
            b.box((wall - 0.04, wall + 0.04), (-0.85, floor), (z + 0.55, z + 1.45), door)
    side = 1 if rng.random() < 0.5 else -1
    for z in np.arange(3.2, length - 1.0, 1.7):
        foot = np.array([side * (half - rng.uniform(0.4, 0.5)), floor, z + rng.uniform(-0.3, 0.3)])
        _thing(b, foot, rng.uniform(0.4, 0.6))
        side = -side
    b.structure()
    b.new_object()
    b.box((-0.55, 0.55), (-0.85, floor), (length - 0.08, length), b.material(PLANKS, 1.6, None, 0.5))
    b.structure()
    return Path(
        eye=np.array([[-0.3, -0.02, -1.6], [0.32, -0.15, 2.0]]),
        target=np.array([[0.25, 0.1, 4.5], [-0.3, 0.05, 7.5]]),
        bulge=np.array([0.1, 0.0, 0.0]),
        sway=np.array([0.05, 0.04, 0.0]),
    )


def _object(b: SceneBuilder) -> Path:
    """Things on a table in the middle of a hall, seen on an arc around them."""
    rng = b.rng
    floor = 1.2
    surfaces = {
        "floor": b.material(PLANKS, 2.6, (0.45, 0.36, 0.28), 0.3),
        "ceiling": b.material(PLASTER, 3.0, (0.66, 0.64, 0.6), 0.25),
        "back": b.material(PATCHES, 3.2, None, 0.5),
        "front": b.material(PLASTER, 3.2),
        "left": b.material(BRICKS, 3.0, None, 0.4),
        "right": b.material(PATCHES, 2.6, None, 0.5),
    }
    _shell(b, (-3.6, 3.6), (-1.9, floor), (-3.0, 4.2), surfaces)
    center = np.array([0.0, floor, 1.6])
    b.new_object()
    top = b.material(PATCHES, 1.6, (0.55, 0.42, 0.3), 0.5)
    b.add(CYLINDER, center - (0, 0.78, 0), np.array([0.95, 0.04, 0.95]), top)
    b.add(CYLINDER, center - (0, 0.37, 0), np.array([0.12, 0.37, 0.12]), top)
    b.add(CYLINDER, center - (0, 0.03, 0), np.array([0.5, 0.03, 0.5]), top)
    desk = center - (0, 0.82, 0)
    _thing(b, desk + np.array([rng.uniform(-0.1, 0.1), 0, 0.05]), rng.uniform(0.38, 0.48))
    for angle in np.linspace(0, 2 * np.pi, 5, endpoint=False) + rng.uniform(0, 1):
        foot = desk + rng.uniform(0.55, 0.68) * np.array([np.cos(angle), 0, np.sin(angle)])
        _thing(b, foot, rng.uniform(0.2, 0.32))
    b.structure()
    for x in (-2.2, -0.4, 1.7):
        _picture(b, (x + rng.uniform(-0.3, 0.3), -0.4, 4.2), (rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.55)), 2)
    for corner in ((-2.6, floor, 3.2), (2.7, floor, 3.0), (-1.2, floor, 3.6), (1.4, floor, 3.5)):
        _thing(b, np.array(corner) + rng.uniform(-0.2, 0.2, 3) * (1, 0, 1), rng.uniform(0.6, 0.9))
    b.structure()
    _plant(b, np.array([rng.uniform(-2.0, -1.7), floor, 2.4]), 1.5)
    return Path(
        eye=np.array([[-0.75, -0.45, -0.55], [0.95, -0.6, -0.45]]),
        target=np.array([[0.0, 0.28, 1.6], [0.0, 0.26, 1.6]]),
        bulge=np.array([0.0, -0.05, -0.3]),
        sway=np.array([0.0, 0.05, 0.03]),
    )


def _orbit(b: SceneBuilder) -> Orbit:
    """A figure and things on a table in the middle of a hall that is furnished all round, seen on a full circle; the figure is object 1."""
    rng = b.rng
    floor = 1.2
    sides = {
        side: b.material(kind, 3.0, None, 0.45)
        for side, kind in zip(("back", "front", "left", "right"), 2 * [PATCHES, BRICKS], strict=True)
    }
    floors = {"floor": b.material(PLANKS, 2.6, (0.45, 0.36, 0.28), 0.3), "ceiling": b.material(PLASTER, 3.0, (0.66, 0.64, 0.6), 0.25)}
    _shell(b, (-4.0, 4.0), (-1.9, floor), (-4.0, 4.0), sides | floors)
    desk = np.array([0.0, floor - 0.82, 0.0])
    b.new_object()
    turn = yaw(rng.uniform(-1.5, 1.5))
    for offset, half in (
        ((0, -0.28, 0), (0.16, 0.28, 0.12)),
        ((0, -0.66, 0), (0.11, 0.12, 0.1)),
        ((0.24, -0.42, 0.05), (0.16, 0.05, 0.05)),
    ):
        b.add(BOX, desk + turn @ np.array(offset), np.array(half) * rng.uniform(0.9, 1.15), b.random_material(0.4), turn)
    b.new_object()
    top = b.material(PATCHES, 1.6, (0.55, 0.42, 0.3), 0.5)
    for up, half in ((0.78, (0.95, 0.04, 0.95)), (0.37, (0.12, 0.37, 0.12)), (0.03, (0.5, 0.03, 0.5))):
        b.add(CYLINDER, np.array([0.0, floor - up, 0.0]), np.array(half), top)
    for angle in np.linspace(0, 2 * np.pi, 5, endpoint=False) + rng.uniform(0, 1):
        _thing(b, desk + rng.uniform(0.55, 0.68) * np.array([np.cos(angle), 0, np.sin(angle)]), rng.uniform(0.2, 0.32))
    b.structure()
    for wall, axis in ((4.0, 2), (-4.0, 2), (4.0, 0), (-4.0, 0)):
        for along in (-1.9, 0.2, 2.1):
            center = [along + rng.uniform(-0.3, 0.3), -0.4, wall] if axis == 2 else [wall, -0.4, along + rng.uniform(-0.3, 0.3)]
            _picture(b, (center[0], center[1], center[2]), (rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.55)), axis)
    for angle in np.linspace(0, 2 * np.pi, 7, endpoint=False) + rng.uniform(0, 1):
        _thing(b, np.array([3.3 * np.cos(angle), floor, 3.3 * np.sin(angle)]), rng.uniform(0.6, 0.9))
    b.structure()
    return Orbit(target=np.array([[0.0, 0.1, 0.0]]), radius=2.1, height=0.7)


_SECTORS = 16


def _forgetful(b: SceneBuilder) -> Orbit:
    """Two places in one spot: a hall seen from its middle, whose walls and things are others each time the camera comes round again.

    They are exchanged behind the camera's back, so that frames that follow each other always agree. The first round shows one place, the
    second another; from the third on it is the second.
    """
    rng, floor = b.rng, 1.25
    stone = {name: b.material(PLASTER, 3.0, (0.6, 0.6, 0.6), 0.2) for name in ("back", "front", "left", "right", "floor", "ceiling")}
    _shell(b, (-5.2, 5.2), (-1.7, floor), (-5.2, 5.2), stone)
    for era in range(2):
        for sector in range(_SECTORS):
            angle, first = 2 * np.pi * (sector + 0.5) / _SECTORS, b.num_objects
            outward, away = np.array([-np.sin(angle), 0.0, -np.cos(angle)]), rng.uniform(2.9, 4.1)
            b.new_object()
            half = np.array([1.08 * away * np.tan(np.pi / _SECTORS), rng.uniform(1.0, 1.45), 0.05])
            b.add(BOX, away * outward + (0, floor - half[1], 0), half, b.material(int(rng.choice([PATCHES, BRICKS])), 1.8), yaw(angle))
            across = np.cross(np.array([0.0, 1.0, 0.0]), outward)
            _thing(b, (away - rng.uniform(0.6, 1.0)) * outward + rng.uniform(-0.4, 0.4) * across + (0, floor, 0), rng.uniform(0.6, 0.9))
            swapped = orbit_progress(angle + np.pi)
            for index in range(first, b.num_objects):
                b.spans[index] = (-np.inf, swapped) if era == 0 else (swapped, np.inf)
    b.structure()
    return Orbit(target=np.zeros((1, 3)), radius=0.8, height=0.15, outward=True)


def _house(b: SceneBuilder, foot: Array, half: tuple[float, float], height: float, turn: float) -> None:
    """A house with windows, a door and a gabled roof."""
    rng = b.rng
    b.new_object()
    rotation = yaw(turn)
    wall = b.material(int(rng.choice([BRICKS, PATCHES, PLASTER])), 2.4, None, 0.35)
    roof = b.material(BRICKS, 3.0, (0.5, 0.26, 0.2), 0.3)
    glass = b.material(PATCHES, 1.0, (0.2, 0.26, 0.34), 0.3)
    door = b.material(PLANKS, 1.6, None, 0.4)
    b.add(BOX, foot - (0, 0.5 * height, 0), np.array([half[0], 0.5 * height, half[1]]), wall, rotation)
    pitch = rng.uniform(0.55, 0.75)
    slope = half[0] / np.cos(pitch) * 0.5 + 0.12
    for side in (-1, 1):
        offset = rotation @ np.array([side * 0.5 * half[0], -height - 0.5 * half[0] * np.tan(pitch), 0.0])
        b.add(BOX, foot + offset, np.array([slope, 0.08, half[1] + 0.2]), roof, rotation @ tilt(side * pitch))
    for side in (-1, 1):
        for row in range(max(1, int(height / 1.5))):
            up = -0.9 - 1.45 * row
            front = rotation @ np.array([side * 0.5 * half[0], up, -half[1]])
            b.add(BOX, foot + front, np.array([0.32, 0.42, 0.05]), glass, rotation)
            flank = rotation @ np.array([side * half[0], up, rng.uniform(-0.5, 0.5) * half[1]])
            b.add(BOX, foot + flank, np.array([0.05, 0.42, 0.35]), glass, rotation)
    b.add(BOX, foot + rotation @ np.array([0.0, -0.6, -half[1]]), np.array([0.3, 0.6, 0.06]), door, rotation)
    b.structure()


def _outdoor(b: SceneBuilder) -> Path:
    """A village green: houses, trees, poles, hills far behind, sky."""
    rng = b.rng
    floor = 1.5
    b.box((-80, 80), (floor, floor + 1.0), (-40, 120), b.material(FOLIAGE, 5.0, (0.4, 0.46, 0.24), 0.35))
    b.box((-1.1, 1.3), (floor - 0.02, floor), (-3.0, 40.0), b.material(BRICKS, 3.5, (0.5, 0.46, 0.42), 0.3))
    for x, z, turn in ((-4.6, 8.0, 0.35), (4.9, 9.5, -0.4), (-5.4, 15.0, 0.2), (5.0, 17.0, -0.25), (0.3, 23.0, 0.05)):
        foot = np.array([x + rng.uniform(-0.5, 0.5), floor, z + rng.uniform(-0.7, 0.7)])
        half = (rng.uniform(1.5, 2.0), rng.uniform(1.4, 2.0))
        _house(b, foot, half, rng.uniform(2.2, 3.4), turn + rng.uniform(-0.15, 0.15))
    for x, z in ((-2.6, 5.2), (2.5, 6.2), (-2.4, 11.0), (2.7, 12.5), (-8.5, 11.0), (8.5, 13.0)):
        _plant(b, np.array([x + rng.uniform(-0.4, 0.4), floor, z + rng.uniform(-0.6, 0.6)]), rng.uniform(2.3, 3.4))
    wood = b.material(PLANKS, 0.8, (0.45, 0.38, 0.3), 0.3)
    b.new_object()
    for z in np.arange(3.4, 11.0, 1.3):
        b.add(CYLINDER, np.array([1.9, floor - 0.4, z]), np.array([0.06, 0.4, 0.06]), wood)
    for height in (0.3, 0.62):
        b.box((1.87, 1.93), (floor - height - 0.05, floor - height + 0.05), (3.4, 10.0), wood)
    for x, z in ((-1.5, 6.8), (1.5, 14.0)):
        b.new_object()
        b.add(CYLINDER, np.array([x, floor - 1.6, z]), np.array([0.07, 1.6, 0.07]), wood)
        b.add(ELLIPSOID, np.array([x, floor - 3.25, z]), np.array([0.22, 0.25, 0.22]), b.random_material(0.4))
    for x, z in ((-1.9, 3.9), (0.6, 5.3), (-0.7, 8.4)):
        _thing(b, np.array([x, floor, z]), rng.uniform(0.5, 0.8))
    b.structure()
    for x in (-40.0, -14.0, 12.0, 38.0):
        hill = b.material(FOLIAGE, 16.0, (0.36, 0.44, 0.36), 0.25)
        radii = np.array([rng.uniform(18, 26), rng.uniform(4.5, 8.5), 12.0])
        b.add(ELLIPSOID, np.array([x + rng.uniform(-3, 3), floor + 0.5, 52.0 + rng.uniform(-4, 4)]), radii, hill)
    return Path(
        eye=np.array([[-0.9, -0.2, -0.6], [0.9, -0.5, 1.1]]),
        target=np.array([[-0.2, -0.1, 9.0], [0.3, -0.1, 10.0]]),
        bulge=np.array([0.0, 0.0, -0.2]),
        sway=np.array([0.04, 0.06, 0.05]),
    )
