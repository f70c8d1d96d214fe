"""Cameras and depth as other programs write them, made small and by seed, each with its right answer.

All show the box of `inputs_world`, whose cameras are known: a kind writes them in a program's format, with what goes wrong there.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from benchmarks.inputs_clips import SIZE, cube, encode, psnr, wrong
from benchmarks.inputs_folders import stored_turned, written
from benchmarks.inputs_world import Cube, make_cube
from utils.cameras.projection import invert_rigid
from utils.scene.media import write_image
from utils.types import Array, Scene

GL = np.diag([1.0, -1.0, -1.0, 1.0])
FRAMES = 10
NAMES = tuple(f"{i:03d}.png" for i in range(FRAMES))


@dataclass(frozen=True)
class Made:
    """What stage 0 makes of a data set.

    Attributes:
        scene: cameras, depth and images.
        positions: of its frames in the input.
        notes: what was said.
    """

    scene: Scene
    positions: Sequence[int]
    notes: tuple[str, ...]

    def says(self, word: str) -> bool:
        """Whether a line on the console has the word."""
        return any(word in note for note in self.notes)


@dataclass(frozen=True)
class Refused:
    """The right answer is a refusal that has these words."""

    words: str


Ask = Callable[[Made], str] | Refused


@dataclass(frozen=True)
class DataSet:
    """A kind of data set.

    Attributes:
        name: what it is.
        build: writes it into a folder: (folder, generator of random numbers) -> settings of stage 0, and what to ask of the outcome.
    """

    name: str
    build: Callable[[Path, np.random.Generator], tuple[dict[str, Any], Ask]]


DATA_SETS: list[DataSet] = []


def data_set(name: str) -> Callable[[Any], Any]:
    """Registers a builder."""

    def register(build: Any) -> Any:
        DATA_SETS.append(DataSet(name, build))
        return build

    return register


def right(
    truth: Cube, said: str = "", *, unit: float | None = 1.0, frames: int = FRAMES, within: float = 0.002, depth: float = 0.05
) -> Ask:
    """Asks for the true cameras and depth.

    Args:
        truth: of the frames that should be there, and after them others.
        said: in a line on the console.
        unit: scene units of a true one; None: any.
        frames: that should be there.
        within: largest error of a camera's place, as a share of the path.
        depth: largest median error of depth, as a share.
    """

    def ask(made: Made) -> str:
        cameras = made.scene.cameras
        if len(cameras.c2w) != frames:
            return f"{len(cameras.c2w)} of {frames} frames"
        c2w = truth.c2w[np.asarray(made.positions)]
        own, true = (invert_rigid(poses[:1]) @ poses for poses in (cameras.c2w, c2w))
        path = np.linalg.norm(true[:, :3, 3], axis=1).max()
        scale = float(np.linalg.norm(own[:, :3, 3]) / np.linalg.norm(true[:, :3, 3]))
        off = float(np.abs(own[:, :3, 3] / scale - true[:, :3, 3]).max() / path)
        turned = float(np.degrees(Rotation.from_matrix(own[:, :3, :3] @ true[:, :3, :3].transpose(0, 2, 1)).magnitude()).max())
        focal = cameras.K[0, 0, 0] / cameras.size[1] / (truth.K[0, 0] / truth.size[1])
        known = made.scene.depth > 0
        sized = np.stack(
            [cv2.resize(z, cameras.size[::-1], interpolation=cv2.INTER_NEAREST) for z in truth.depth[np.asarray(made.positions)]]
        )
        error = float(np.median(np.abs(made.scene.depth[known] / scale / sized[known] - 1)))
        return wrong(
            (off < within, f"cameras off by {off:.1%} of the path"),
            (turned < 100 * within, f"turned by {turned:.2f} degrees"),
            (abs(focal - 1) < 0.05, f"focal length {focal:.2f} times the true one"),
            (unit is None or abs(scale / unit - 1) < 0.03, f"scale {scale:.3f}"),
            (not said or made.says(said), f"said {made.notes}"),
            (error < depth, f"depth off by {error:.1%}"),
        )

    return ask


def frames_of(folder: Path, truth: Cube, names: Sequence[str] = NAMES) -> Path:
    """The frames in `images/`."""
    return written(folder / "images", truth, list(names))


def given(folder: Path, cameras: Path, **more: Any) -> dict[str, Any]:
    """Settings of stage 0 for frames in `images/` and cameras."""
    return {"frames_dir": folder / "images", "cameras": cameras, **more}


def small(rng: np.random.Generator) -> Cube:
    """A few frames of a box."""
    return cube(rng, FRAMES)


def colmap_text(
    folder: Path,
    truth: Cube,
    names: Sequence[str],
    *,
    camera: str | None = None,
    points: str | None = "\n",
    rows: Sequence[int] | None = None,
) -> Path:
    """A COLMAP model as text.

    Args:
        folder: of the model.
        truth: cameras.
        names: of the images.
        camera: line of the camera without its number; None: PINHOLE.
        points: line of image points after each image; None: none at all.
        rows: frames that are registered.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (h, w), K = truth.size, truth.K
    camera = camera or f"PINHOLE {w} {h} {K[0, 0]} {K[1, 1]} {K[0, 2]} {K[1, 2]}"
    (folder / "cameras.txt").write_text(f"# Camera list\n1 {camera}\n")
    lines = ["# Image list"]
    for i in range(len(names)) if rows is None else rows:
        w2c = invert_rigid(truth.c2w[i])
        x, y, z, q = Rotation.from_matrix(w2c[:3, :3]).as_quat()
        lines.append(f"{i + 1} {q} {x} {y} {z} {' '.join(map(str, w2c[:3, 3]))} 1 {names[i]}")
        if points is not None:
            lines.append(points.strip("\n"))
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    (folder / "points3D.txt").write_text("# 3D point list\n")
    return folder


@data_set("COLMAP: several models, the largest not the first")
def several_models(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    frames_of(folder, truth)
    largest = int(rng.integers(3))
    for model in range(3):
        colmap_text(folder / "sparse" / str(model), truth, NAMES, rows=None if model == largest else range(2 + model))
    return given(folder, folder), right(truth, f"of 3 COLMAP models {largest} is used")


@data_set("COLMAP: text with spaces in names, CRLF, blank or no lines of points")
def odd_text(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    names = [f"my clip ({i}) final.png" for i in range(FRAMES)]
    frames_of(folder, truth, names)
    place = colmap_text(folder / "sparse" / "0", truth, names, points=["\n", "12.5 30 -1 8 9.25 4", None][int(rng.integers(3))])
    for path in place.glob("*.txt"):
        path.write_bytes(path.read_text().replace("\n", "\r\n").encode("utf-8-sig"))
    return given(folder, folder / "sparse"), right(truth)


@data_set("COLMAP: binary, some images not registered")
def binary(folder: Path, rng: np.random.Generator):
    import pycolmap

    truth, lost = small(rng), int(rng.integers(1, FRAMES - 1))
    frames_of(folder, truth)
    text = colmap_text(folder / "text", truth, NAMES, rows=[i for i in range(FRAMES) if i != lost])
    (folder / "sparse" / "0").mkdir(parents=True)
    pycolmap.Reconstruction(str(text)).write_binary(str(folder / "sparse" / "0"))
    return given(folder, folder / "sparse"), right(truth, "without a camera, which are left out: 1", frames=FRAMES - 1)


# A lens of each model that bends a picture of this size clearly; focal lengths come before.
_LENSES = {
    "SIMPLE_RADIAL": (1, (-0.12,)),
    "RADIAL": (1, (-0.12, 0.03)),
    "OPENCV": (2, (-0.12, 0.03, 0.002, -0.001)),
    "FULL_OPENCV": (2, (-0.12, 0.03, 0.002, -0.001, 0.01, 0.0, 0.0, 0.0)),
    "OPENCV_FISHEYE": (2, (0.05, -0.01, 0.0, 0.0)),
    "SIMPLE_RADIAL_FISHEYE": (1, (0.04,)),
    "RADIAL_FISHEYE": (1, (0.04, -0.01)),
    "FOV": (2, (0.7,)),
    "THIN_PRISM_FISHEYE": (2, (0.03, -0.01, 0.001, 0.001, 0.0, 0.0, 0.001, 0.0)),
}


def bent(rng: np.random.Generator, model: str) -> tuple[Cube, Cube, tuple[float, ...]]:
    """Frames through a lens, the same through a pinhole, and the lens's parameters."""
    import pycolmap

    (h, w), (focals, extra) = SIZE, _LENSES[model]
    params = (*(0.9 * w,) * focals, w / 2, h / 2, *extra)
    camera = pycolmap.Camera(model=model, width=w, height=h, params=list(params))
    seed = int(rng.integers(1 << 30))
    lens = make_cube(FRAMES, seed=seed, lens=lambda pixels: np.asarray(camera.cam_from_img(pixels)))
    return lens, make_cube(FRAMES, seed=seed), params


def straightened(truth: Cube) -> Ask:
    """Asks for true cameras and for pictures like a pinhole's."""
    cameras = right(truth)
    assert not isinstance(cameras, Refused)

    def ask(made: Made) -> str:
        shown = made.scene.depth > 0
        true = [cv2.resize(truth.images[p], made.scene.cameras.size[::-1], interpolation=cv2.INTER_AREA) for p in made.positions]
        quality = min(psnr(own[s], t[s]) for own, t, s in zip(made.scene.images, true, shown, strict=True))
        return cameras(made) or wrong((quality > 22, f"pictures are {quality:.1f} dB like a pinhole's"))

    return ask


@data_set("COLMAP: lenses of every model")
def lenses(folder: Path, rng: np.random.Generator):
    model = sorted(_LENSES)[int(rng.integers(len(_LENSES)))]
    lens, truth, params = bent(rng, model)
    frames_of(folder, lens)
    place = colmap_text(folder / "sparse", lens, NAMES, camera=f"{model} {SIZE[1]} {SIZE[0]} {' '.join(map(str, params))}")
    return given(folder, place), straightened(truth)


@data_set("COLMAP: pictures turned by EXIF, cameras of those as stored")
def exif(folder: Path, rng: np.random.Generator):
    side = cube(rng, FRAMES)
    names = [f"IMG_{i}.jpg" for i in range(FRAMES)]
    images = np.stack([np.rot90(image, 3) for image in side.images])  # upright they are the box on its side
    turned = Cube(np.ascontiguousarray(images), side.depth, side.c2w, side.K)
    stored_turned(folder / "images", turned, names, 6)
    return given(folder, colmap_text(folder / "sparse", side, names)), right(side, "EXIF")


@data_set("turned by EXIF, cameras of those as turned")
def exif_heeded(folder: Path, rng: np.random.Generator):
    truth, names = small(rng), [f"IMG_{i}.jpg" for i in range(FRAMES)]
    stored_turned(folder / "images", truth, names, [6, 8][int(rng.integers(2))])
    path = transforms(folder, truth, [f"images/{name}" for name in names])
    return given(folder, path), right(truth)


@data_set("cameras of pictures of another aspect")
def aspect(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    frames_of(folder, truth)
    camera = f"SIMPLE_PINHOLE {SIZE[0]} {SIZE[1]} 170 {SIZE[0] / 2} {SIZE[1] / 2}"
    return given(folder, colmap_text(folder / "sparse", truth, NAMES, camera=camera)), Refused(
        "192x144, but its camera is that of a picture of 144x192"
    )


@data_set("a sub-folder for each camera, names repeated")
def rigs(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    names = [f"{side}/{i:06d}.png" for side in ("back", "front") for i in range(FRAMES // 2)]
    frames_of(folder, truth, names)
    path = transforms(folder, truth, [f"images/{name}" for name in names])
    return given(folder, path), right(truth)


def transforms(
    folder: Path,
    truth: Cube,
    files: Sequence[str | None],
    *,
    axes: Array = GL,
    each: Callable[[int], dict[str, Any]] = lambda i: {},
    **shared: Any,
) -> Path:
    """A nerfstudio transforms.json.

    Args:
        folder: where to.
        truth: cameras.
        files: paths of the frames.
        axes: turns OpenCV's camera axes.
        each: what to add to a frame.
        shared: what to add to the file.
    """
    (h, w), K = truth.size, truth.K
    frames = [{"file_path": name, "transform_matrix": (truth.c2w[i] @ axes).tolist(), **each(i)} for i, name in enumerate(files)]
    top = {"w": w, "h": h, "fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]} | shared
    path = folder / "transforms.json"
    path.write_text(json.dumps({key: value for key, value in top.items() if value is not None} | {"frames": frames}))
    return path


FILES = [f"images/{name}" for name in NAMES]


@data_set("nerfstudio: as it should be")
def nerfstudio(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    frames_of(folder, truth)
    return given(folder, transforms(folder, truth, FILES)), right(truth)


@data_set("nerfstudio: OpenCV's axes where OpenGL's are meant")
def opencv_axes(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    frames_of(folder, truth)
    return given(folder, transforms(folder, truth, FILES, axes=np.eye(4))), right(truth, "OpenGL's where OpenCV's are expected")


@data_set("world-to-camera under transform_matrix")
def inverse(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    frames_of(folder, truth)
    swapped = Cube(truth.images, truth.depth, invert_rigid(truth.c2w), truth.K)
    return given(folder, transforms(folder, swapped, FILES, axes=np.eye(4))), right(truth, "exchanged")


@data_set("left-handed world (Unity)")
def left_handed(folder: Path, rng: np.random.Generator):
    truth, flip = small(rng), np.diag([1.0, -1.0, 1.0, 1.0])
    frames_of(folder, truth)
    swapped = Cube(truth.images, truth.depth, flip @ truth.c2w @ flip, truth.K)
    return given(folder, transforms(folder, swapped, FILES, axes=np.eye(4))), right(truth, "left-handed")


@data_set("focal length of a picture of another size")
def other_focal(folder: Path, rng: np.random.Generator):
    truth, factor = small(rng), float(rng.choice([0.5, 2.0]))
    frames_of(folder, truth)
    K = truth.K[0, 0] * factor
    return given(folder, transforms(folder, truth, FILES, fl_x=K, fl_y=K)), right(truth, "times the one given", within=0.01)


@data_set("focal length that differs by frame, SIMPLE_RADIAL")
def varying(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    frames_of(folder, truth)
    zoom = lambda i: 1 + 0.02 * np.sin(i + float(truth.c2w[0, 0, 3]))  # noqa: E731
    for i, name in enumerate(NAMES):  # pictures of a lens that zooms, about the middle
        matrix = np.array([[zoom(i), 0, (1 - zoom(i)) * SIZE[1] / 2], [0, zoom(i), (1 - zoom(i)) * SIZE[0] / 2]])
        image = cv2.warpAffine(truth.images[i], matrix, SIZE[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        write_image(folder / "images" / name, image)
    own = lambda i: {"fl_x": truth.K[0, 0] * zoom(i), "fl_y": truth.K[1, 1] * zoom(i), "k1": 0.0, "camera_model": "SIMPLE_RADIAL"}  # noqa: E731
    return given(folder, transforms(folder, truth, FILES, each=own)), right(truth, "brought to the middle one")


@data_set("instant-ngp: is_fisheye without camera_model")
def fisheye(folder: Path, rng: np.random.Generator):
    lens, truth, (fx, fy, cx, cy, *k) = bent(rng, "OPENCV_FISHEYE")
    frames_of(folder, lens)
    numbers = {f"k{i + 1}": value for i, value in enumerate(k)}
    path = transforms(
        folder, lens, [f"./{name}" for name in FILES], fl_x=fx, fl_y=fy, cx=cx, cy=cy, is_fisheye=True, aabb_scale=16, **numbers
    )
    return given(folder, path), straightened(truth)


@data_set("a panorama's camera model")
def panorama(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    frames_of(folder, truth)
    return given(folder, transforms(folder, truth, FILES, camera_model="EQUIRECTANGULAR")), Refused("EQUIRECTANGULAR")


@data_set("NeRF synthetic: several files, no suffixes, a field of view only")
def synthetic(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    names = [f"r_{i}.{j}.png" for i in (0, 1) for j in range(FRAMES // 2)]
    frames_of(folder, truth, names)
    angle = {"camera_angle_x": float(2 * np.arctan(SIZE[1] / 2 / truth.K[0, 0]))}
    frames = [{"file_path": f"./images/{n[:-4]}", "transform_matrix": (truth.c2w[i] @ GL).tolist()} for i, n in enumerate(names)]
    cut = int(rng.integers(3, 7))
    (folder / "transforms_train.json").write_text(json.dumps({**angle, "frames": frames[:cut]}))
    (folder / "transforms_test.json").write_text(json.dumps({**angle, "frames": frames[cut:]}))
    return given(folder, folder), right(truth)


@data_set("paths and encodings of another system")
def windows(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    frames_of(folder, truth, [f"Büro_{i}.png" for i in range(FRAMES)])
    path = transforms(folder, truth, [f"C:\\Users\\me\\images\\Büro_{i}.PNG" for i in range(FRAMES)])
    text = json.dumps(json.loads(path.read_text()), ensure_ascii=False)
    path.write_bytes(text.encode(["utf-16", "utf-8-sig", "latin-1"][int(rng.integers(3))]))
    return given(folder, path), right(truth)


@data_set("masks that the frames name")
def masks(folder: Path, rng: np.random.Generator):
    truth, edge = small(rng), int(rng.integers(30, 60))
    frames_of(folder, truth)
    white = np.full(SIZE, 255, np.uint8)
    white[:, :edge] = 0
    for name in NAMES:
        (folder / "masks").mkdir(exist_ok=True)
        write_image(folder / "masks" / name, white)
    cameras = right(truth, "masks of the data set")
    assert not isinstance(cameras, Refused)

    def ask(made: Made) -> str:
        share = float((made.scene.depth == 0).mean() if made.scene.ignored is None else made.scene.ignored.mean())
        return cameras(made) or wrong((abs(share - edge / SIZE[1]) < 0.02, f"{share:.1%} is left out"))

    return given(folder, transforms(folder, truth, FILES, each=lambda i: {"mask_path": f"masks/{NAMES[i]}"})), ask


@data_set("depth images in millimetres")
def depth_images(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    frames_of(folder, truth)
    (folder / "depth").mkdir()
    for name, z in zip(NAMES, truth.depth, strict=True):
        cv2.imwrite(str(folder / "depth" / name), (1000 * z).astype(np.uint16))
    path = transforms(folder, truth, FILES, each=lambda i: {"depth_file_path": f"depth/{NAMES[i]}"})
    return given(folder, path), right(truth, "cameras and depth of 10 frames imported", depth=0.01)


@data_set("coordinates of a map (UTM)")
def utm(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    frames_of(folder, truth)
    c2w = truth.c2w.copy()
    c2w[:, :3, 3] += [448252.0, 5411932.0, 310.0]
    return given(folder, transforms(folder, Cube(truth.images, truth.depth, c2w, truth.K), FILES)), right(truth, "world_offset")


@data_set("Record3D: a focal length for each frame")
def record3d(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    written(folder / "rgb", truth, [f"{i}.png" for i in range(FRAMES)])
    gl = truth.c2w @ GL
    poses = np.concatenate([Rotation.from_matrix(gl[:, :3, :3]).as_quat(), gl[:, :3, 3]], axis=1)
    K = truth.K
    each = [[K[0, 0] * f, K[1, 1] * f, K[0, 2], K[1, 2]] for f in 1 + 0.002 * rng.standard_normal(FRAMES)]
    content = {"w": SIZE[1], "h": SIZE[0], "K": K.T.ravel().tolist(), "poses": poses.tolist(), "perFrameIntrinsicCoeffs": each}
    (folder / "metadata.json").write_text(json.dumps(content))
    return {"frames_dir": folder / "rgb", "cameras": folder}, right(truth, within=0.01)


@data_set("Polycam, 3D Scanner App: a file for each picture")
def phones(folder: Path, rng: np.random.Generator):
    truth, which = small(rng), int(rng.integers(2))
    names = [f"{4100 + 37 * i}.png" if which else f"frame_{i:05d}.png" for i in range(FRAMES)]
    frames_of(folder, truth, names)
    place, K = folder / ("keyframes/cameras" if which else "scan"), truth.K
    place.mkdir(parents=True)
    for name, pose in zip(names, truth.c2w @ GL, strict=True):
        polycam = {f"t_{row}{column}": pose[row, column] for row in range(3) for column in range(4)}
        polycam |= {"fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2], "width": SIZE[1], "height": SIZE[0]}
        scanner = {"cameraPoseARFrame": pose.ravel().tolist(), "intrinsics": K.ravel().tolist(), "frame_index": 1}
        (place / name).with_suffix(".json").write_text(json.dumps(polycam if which else scanner))
    return given(folder, folder if which else place), right(truth)


def npz_of(folder: Path, **arrays: Any) -> Path:
    """An npz file."""
    np.savez(folder / "results.npz", **arrays)
    return folder / "results.npz"


def da3(truth: Cube) -> dict[str, Array]:
    """Arrays as Depth Anything 3 names them."""
    w2c = invert_rigid(truth.c2w)[:, :3].astype(np.float32)
    K = np.repeat(truth.K[None], FRAMES, axis=0).astype(np.float32)
    return {"image": truth.images, "depth": truth.depth, "conf": 1 + 0 * truth.depth, "extrinsics": w2c, "intrinsics": K}


_DA3: dict[str, Callable[[dict[str, Any], Cube], dict[str, Any]]] = {
    "mini_npz (no images)": lambda a, t: {k: v for k, v in a.items() if k != "image"},
    "no confidence": lambda a, t: {k: v for k, v in a.items() if k != "conf"},
    "a stored None": lambda a, t: a | {"conf": np.array(None, object)},
    "float16 and batch axes": lambda a, t: {
        k: (v.astype(np.float16) if v.dtype == np.float32 and k != "intrinsics" else v)[None] for k, v in a.items()
    },
    "one channel": lambda a, t: a | {"depth": a["depth"][..., None]},
    "camera-to-world": lambda a, t: a | {"extrinsics": t.c2w},
    "intrinsics of the original": lambda a, t: a | {"intrinsics": np.diag([4.0, 4.0, 1.0]) @ a["intrinsics"]},
}


def _register_da3(form: str) -> None:
    @data_set(f"Depth Anything 3: {form}")
    def build(folder: Path, rng: np.random.Generator):
        truth = small(rng)
        frames_of(folder, truth)
        return given(folder, npz_of(folder, **_DA3[form](da3(truth), truth))), right(truth, depth=0.01)


for _form in _DA3:
    _register_da3(_form)


@data_set("Depth Anything 3: no poses")
def no_poses(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    frames_of(folder, truth)
    unit = float(rng.uniform(0.2, 30))
    path = npz_of(folder, depth=unit * truth.depth, intrinsics=da3(truth)["intrinsics"])
    return given(folder, path), right(truth, "estimated", unit=unit, within=0.02, depth=0.03)


@data_set("Depth Anything 3: depth in another unit than the poses")
def other_unit(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    frames_of(folder, truth)
    return given(folder, npz_of(folder, **da3(truth) | {"depth": float(rng.uniform(3, 30)) * truth.depth})), right(
        truth, "another unit", depth=0.03
    )


@data_set("Depth Anything 3: a frame without depth")
def empty_frame(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    frames_of(folder, truth)
    arrays = da3(truth)
    arrays["depth"] = arrays["depth"].copy()
    arrays["depth"][int(rng.integers(FRAMES))] = np.nan
    return given(folder, npz_of(folder, **arrays)), right(truth, "without depth", frames=FRAMES - 1, depth=0.01)


def _points(truth: Cube) -> Array:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    K, z = truth.K, truth.depth
    return np.stack([(x - K[0, 2]) / K[0, 0] * z, (y - K[1, 2]) / K[1, 1] * z, z], -1).astype(np.float32)


@data_set("VGGT, MapAnything, Pi3")
def others(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    frames_of(folder, truth)
    a, which = da3(truth), int(rng.integers(3))
    arrays = [
        {
            "images": a["image"].transpose(0, 3, 1, 2) / np.float32(255),
            "depth": a["depth"][..., None],
            "depth_conf": a["conf"],
            "extrinsic": a["extrinsics"],
            "intrinsic": a["intrinsics"],
        },
        {
            "img_no_norm": a["image"] / np.float32(255),
            "depth_z": a["depth"][..., None],
            "intrinsics": a["intrinsics"],
            "camera_poses": truth.c2w,
        },
        {"images": a["image"], "local_points": _points(truth), "conf": 3 * a["conf"][..., None] - 4, "camera_poses": truth.c2w},
    ][which]
    return given(folder, npz_of(folder, **arrays)), right(truth, depth=0.01)


@data_set("cameras without names of another number of frames")
def another_number(folder: Path, rng: np.random.Generator):
    truth, lost = small(rng), int(rng.integers(1, 4))
    frames_of(folder, truth)
    path = npz_of(folder, **{name: array[lost:] for name, array in da3(truth).items()})
    return given(folder, path), Refused(f"those of {FRAMES - lost} frames without names, but there are {FRAMES}")


def trajectory(which: int, folder: Path, c2w: Array, K: Array) -> Path:
    """A trajectory as a video model takes or writes it: SEVA, Lyra, WorldPlay, Voyager, RealEstate10K, ViPE."""
    w2c, (h, w), count = invert_rigid(c2w), SIZE, len(c2w)
    if which == 0:
        truth = Cube(np.zeros((count, *SIZE, 3), np.uint8), np.zeros((count, *SIZE)), c2w, K)
        path = transforms(folder, truth, [f"./samples-rgb/{i:03d}.png" for i in range(count)], orientation_override="none")
        content = json.loads(path.read_text())  # SEVA lists the pictures that it was given as well
        content["frames"].insert(0, {**content["frames"][0], "file_path": "./input/000.png"})
        path.write_text(json.dumps(content))
        return path
    if which == 1:
        np.savez(
            folder / "trajectory.npz",
            w2c=w2c,
            intrinsics=np.repeat((np.diag([4.0, 4, 1]) @ K)[None], count, 0),
            image_height=4 * h,
            image_width=4 * w,
        )
        return folder / "trajectory.npz"
    path = folder / "trajectory.json"
    if which == 2:
        path.write_text(json.dumps({str(i): {"extrinsic": c2w[i].tolist(), "K": K.tolist()} for i in range(count)}))
        return path
    if which == 3:
        path.write_text(json.dumps({"extrinsics": w2c.tolist(), "intrinsics": K.tolist(), "height": h, "width": w}))
        return path
    if which == 4:
        rows = [" ".join(map(str, [i, K[0, 0] / w, K[1, 1] / h, 0.5, 0.5, 0, 0, *pose[:3].ravel()])) for i, pose in enumerate(w2c)]
        (folder / "poses.txt").write_text("https://example.org/watch\n" + "\n".join(rows) + "\n")
        return folder / "poses.txt"
    for part, data in (("pose", c2w), ("intrinsics", np.tile([K[0, 0], K[1, 1], K[0, 2], K[1, 2]], (count, 1)))):
        (folder / part).mkdir()
        np.savez(folder / part / "clip.npz", data=data, inds=np.arange(count))
    return folder / "pose" / "clip.npz"


def prior(folder: Path, rng: np.random.Generator, truth: Cube, c2w: Array, *, programs: int = 6) -> dict[str, Any]:
    """Settings of stage 0 for a clip and the trajectory of its video model, written by one of the first programs of `trajectory`."""
    clip = encode(folder / "clip.mp4", truth.images, options={"crf": "6"})
    return {"input_video": (clip,), "pose_priors": trajectory(int(rng.integers(programs)), folder, c2w, truth.K)}


@data_set("trajectory of the video model")
def followed(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    return prior(folder, rng, truth, truth.c2w), right(truth, "10 of 10 frames, and these stay")


@data_set("trajectory that the video model did not follow to its end")
def half_followed(folder: Path, rng: np.random.Generator):
    truth, last = small(rng), int(rng.integers(5, 8))
    c2w = truth.c2w.copy()
    c2w[last:] = c2w[last - 1]
    return prior(folder, rng, truth, c2w), right(truth, "placed anew", within=0.06, depth=0.1)


@data_set("trajectory that the video model did not follow at all")
def not_followed(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    return prior(folder, rng, truth, truth.c2w[np.arange(FRAMES) * 3 % FRAMES]), right(
        truth, "estimated from the frames", unit=None, within=0.03
    )


@data_set("trajectory of another number of frames")
def trajectory_number(folder: Path, rng: np.random.Generator):
    truth = small(rng)
    # ViPE, the last one, numbers its frames: those that it lacks are left out and named instead.
    return prior(folder, rng, truth, truth.c2w[: -int(rng.integers(1, 4))], programs=5), Refused(f"but there are {FRAMES} frames")
