"""Exports are read back by programs that are not ours: plyfile, gsplat, pycolmap; SPZ by a reader written from its layout."""

import gzip
import json
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from utils.errors import CorruptArtifactError
from utils.exports.cameras.colmap import write_colmap_binary, write_colmap_text
from utils.exports.cameras.nerfstudio import write_transforms
from utils.exports.ply import flatten_discs, read_splat_ply, write_splat_ply
from utils.exports.select import (
    drop_non_finite,
    importance,
    most_important,
    rotate_sh,
    rotation_between,
    scene_up,
    transform_cameras,
    transform_splats,
    upright,
)
from utils.exports.splat import RECORD, write_splat
from utils.exports.spz import write_spz
from utils.types import CameraSet, Splats


def make_splats(count: int = 50, degree: int = 3) -> Splats:
    g = torch.Generator().manual_seed(3)
    return Splats(
        means=torch.randn(count, 3, generator=g) * 3,
        quats=torch.randn(count, 4, generator=g),
        log_scales=torch.randn(count, 3, generator=g) * 0.5 - 3,
        logit_opacities=torch.randn(count, generator=g),
        sh=torch.randn(count, (degree + 1) ** 2, 3, generator=g) * 0.2,
    )


def make_cameras() -> CameraSet:
    """Three cameras held level in a world whose up is +y, turned about it."""
    c2w = np.tile(np.eye(4), (3, 1, 1))
    level = np.diag([1.0, -1.0, -1.0])  # image down is world -y
    for i, yaw in enumerate((-60, 0, 70)):
        c2w[i, :3, :3] = Rotation.from_euler("y", yaw, degrees=True).as_matrix() @ level
        c2w[i, :3, 3] = [i, 0.2 * i, 1.5]
    K = np.tile(np.array([[70.0, 0, 31], [0, 72, 25], [0, 0, 1]]), (3, 1, 1))
    return CameraSet(c2w=c2w, K=K, size=(48, 64), frame_ids=np.arange(3))


def gsplat_basis(directions: torch.Tensor, degree: int) -> torch.Tensor:
    torch_impl = pytest.importorskip("gsplat.cuda._torch_impl")
    count = (degree + 1) ** 2
    columns = [
        torch_impl._spherical_harmonics(degree, directions, torch.eye(count)[b][None, :, None].repeat(len(directions), 1, 3).to(directions))
        for b in range(count)
    ]
    return torch.stack(columns, dim=1)[..., 0]


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_ply_is_the_standard_table(tmp_path: Path, degree: int) -> None:
    plyfile = pytest.importorskip("plyfile")
    splats = make_splats(degree=degree)
    write_splat_ply(tmp_path / "a.ply", splats, "3dgs")
    vertex = plyfile.PlyData.read(str(tmp_path / "a.ply"))["vertex"]
    assert [p.name for p in vertex.properties][:6] == ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert [p.name for p in vertex.properties][-8:] == [
        "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"
    ]  # fmt: skip
    np.testing.assert_array_equal(vertex["y"], splats.means[:, 1].numpy())
    np.testing.assert_array_equal(vertex["opacity"], splats.logit_opacities.numpy())
    np.testing.assert_allclose(vertex["rot_0"], (splats.quats[:, 0] / splats.quats.norm(dim=1)).numpy(), rtol=1e-6)
    rest = (degree + 1) ** 2 - 1
    if rest:  # channel-major: the second coefficient of green comes after all of red
        np.testing.assert_array_equal(vertex[f"f_rest_{rest + 1}"], splats.sh[:, 2, 1].numpy())


def test_ply_equals_gsplats_writer(tmp_path: Path) -> None:
    exporter = pytest.importorskip("gsplat.exporter")
    splats = make_splats()
    unit = torch.nn.functional.normalize(splats.quats, dim=1)
    expected = exporter.export_splats(
        splats.means, splats.log_scales, unit, splats.logit_opacities, splats.sh[:, :1], splats.sh[:, 1:], format="ply"
    )
    write_splat_ply(tmp_path / "a.ply", splats, "3dgs")
    assert (tmp_path / "a.ply").read_bytes() == expected


def test_ply_round_trip_and_2dgs_mark(tmp_path: Path) -> None:
    splats = flatten_discs(make_splats())
    write_splat_ply(tmp_path / "a.ply", splats, "2dgs")
    assert b"\ncomment SplatRenderMode: 2dgs\n" in (tmp_path / "a.ply").read_bytes()[:200]
    back = read_splat_ply(tmp_path / "a.ply")
    torch.testing.assert_close(back.sh, splats.sh)
    torch.testing.assert_close(back.log_scales, splats.log_scales)
    assert bool((back.log_scales[:, 2] < back.log_scales[:, :2].min(dim=1).values - 4).all())
    (tmp_path / "cut.ply").write_bytes((tmp_path / "a.ply").read_bytes()[:-7])
    with pytest.raises(CorruptArtifactError, match="not a complete splat PLY"):
        read_splat_ply(tmp_path / "cut.ply")


def test_max_points_keeps_the_most_important_rows_of_every_attribute() -> None:
    splats = make_splats()
    kept = most_important(splats, 10)
    assert len(kept) == len(kept.quats) == len(kept.sh) == len(kept.logit_opacities) == len(kept.log_scales) == 10
    expected = torch.sort(importance(splats), descending=True).values[:10]
    torch.testing.assert_close(torch.sort(importance(kept), descending=True).values, expected)
    assert most_important(splats, -1) is splats and most_important(splats, 50) is splats


def test_non_finite_splats_are_dropped() -> None:
    splats = make_splats(5)
    splats.sh[3, 2, 1] = float("nan")
    kept = drop_non_finite(splats)
    torch.testing.assert_close(kept.means, splats.means[[0, 1, 2, 4]])


def test_splat_file_equals_gsplats_up_to_order_and_rounding(tmp_path: Path) -> None:
    exporter = pytest.importorskip("gsplat.exporter")
    splats = make_splats()
    write_splat(tmp_path / "a.splat", splats)
    ours = np.fromfile(tmp_path / "a.splat", dtype=RECORD)
    blob = exporter.export_splats(
        splats.means, splats.log_scales, splats.quats, splats.logit_opacities, splats.sh[:, :1], splats.sh[:, 1:], format="splat"
    )
    theirs = np.frombuffer(blob, dtype=RECORD)
    ours, theirs = ours[np.argsort(ours["position"][:, 0])], theirs[np.argsort(theirs["position"][:, 0])]
    np.testing.assert_allclose(ours["position"], theirs["position"])
    np.testing.assert_allclose(ours["scale"], theirs["scale"], rtol=1e-5)
    assert np.abs(ours["rgba"].astype(int) - theirs["rgba"]).max() <= 1
    assert np.abs(ours["rotation"].astype(int) - theirs["rotation"]).max() <= 1


def read_spz(path: Path) -> Splats:
    """A reader from the format's description, back in right-down-front axes."""
    raw = gzip.decompress(path.read_bytes())
    magic, version, count, degree, bits, _, _ = struct.unpack("<IIIBBBB", raw[:16])
    assert (magic, version) == (0x5053474E, 3)
    sizes = [9, 1, 3, 3, 4, 3 * ((degree + 1) ** 2 - 1)]
    cuts = np.cumsum([16, *[s * count for s in sizes]])
    assert len(raw) == cuts[-1]
    position, alpha, color, scale, rotation, harmonics = (
        np.frombuffer(raw[a:b], np.uint8).reshape(count, -1).astype(np.int64) for a, b in pairwise(cuts)
    )
    flip = np.array([1, -1, -1])
    fixed = position.reshape(count, 3, 3) @ np.array([1, 256, 65536])
    fixed = np.where(fixed >= 2**23, fixed - 2**24, fixed)
    word = rotation @ np.array([1, 256, 65536, 2**24])
    quats = np.zeros((count, 4))
    for row in range(count):
        value, largest = int(word[row]), int(word[row]) >> 30
        for component in (3, 2, 1, 0):
            if component != largest:
                quats[row, component] = (value & 511) / 511 * np.sqrt(0.5) * (-1 if value & 512 else 1)
                value >>= 10
        quats[row, largest] = np.sqrt(max(0, 1 - (quats[row] ** 2).sum()))
    wxyz = np.concatenate([quats[:, 3:], quats[:, :3] * flip], axis=1)
    probability = np.clip(alpha[:, 0] / 255, 1e-6, 1 - 1e-6)
    sh = np.concatenate([((color / 255 - 0.5) / 0.15)[:, None], (harmonics.reshape(count, -1, 3) - 128) / 128], axis=1)
    turned = rotate_sh(torch.from_numpy(sh).float(), np.diag([1.0, -1, -1]), gsplat_basis)
    return Splats(
        means=torch.from_numpy(fixed / 2**bits * flip).float(),
        quats=torch.from_numpy(wxyz).float(),
        log_scales=torch.from_numpy(scale / 16 - 10).float(),
        logit_opacities=torch.from_numpy(np.log(probability / (1 - probability))).float(),
        sh=turned,
    )


def test_spz_round_trip(tmp_path: Path) -> None:
    splats = make_splats()
    write_spz(tmp_path / "a.spz", splats)
    back = read_spz(tmp_path / "a.spz")
    torch.testing.assert_close(back.means, splats.means, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.log_scales, splats.log_scales, atol=1 / 30, rtol=0)
    torch.testing.assert_close(torch.sigmoid(back.logit_opacities), torch.sigmoid(splats.logit_opacities), atol=1 / 500, rtol=0)
    unit = torch.nn.functional.normalize(splats.quats, dim=1)
    assert float((back.quats * unit).sum(1).abs().min()) > 1 - 1e-5
    torch.testing.assert_close(back.sh[:, 0], splats.sh[:, 0], atol=0.5 / 255 / 0.15 + 1e-6, rtol=0)
    torch.testing.assert_close(back.sh[:, 1:4], splats.sh[:, 1:4], atol=4.6 / 128, rtol=0)
    torch.testing.assert_close(back.sh[:, 4:], splats.sh[:, 4:], atol=8.6 / 128, rtol=0)


def test_rotated_harmonics_give_the_rotated_colour() -> None:
    rotation = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    splats = make_splats(4)
    turned = transform_splats(splats, rotation, 2.0, gsplat_basis)
    direction = torch.nn.functional.normalize(torch.tensor([[0.2, 0.5, -0.9]]), dim=1)
    moved = direction @ torch.from_numpy(rotation).float().T
    before = torch.einsum("b,nbc->nc", gsplat_basis(direction, 3)[0], splats.sh)
    after = torch.einsum("b,nbc->nc", gsplat_basis(moved, 3)[0], turned.sh)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(turned.means, 2 * splats.means @ torch.from_numpy(rotation).float().T)
    xyzw = torch.nn.functional.normalize(turned.quats, dim=1)[:, [1, 2, 3, 0]].numpy()
    old = Rotation.from_quat(splats.quats[:, [1, 2, 3, 0]].numpy()).as_matrix()
    np.testing.assert_allclose(Rotation.from_quat(xyzw).as_matrix(), rotation @ old, atol=1e-5)
    torch.testing.assert_close(turned.log_scales, splats.log_scales + np.log(2.0))


def test_upright_turns_the_cameras_up_to_the_axis() -> None:
    tilt = Rotation.from_rotvec([0.4, 0.1, 1.0]).as_matrix()
    cameras = transform_cameras(make_cameras(), tilt, 1.0)
    np.testing.assert_allclose(scene_up(cameras), tilt @ [0, 1, 0], atol=1e-6)
    turned = transform_cameras(cameras, upright(cameras, "z"), 3.0)
    np.testing.assert_allclose(scene_up(turned), [0, 0, 1], atol=1e-6)
    assert np.linalg.norm(turned.centers[2]) == pytest.approx(3 * np.linalg.norm(cameras.centers[2]))
    np.testing.assert_array_equal(upright(cameras, "keep"), np.eye(3))


def test_rotation_between_opposite_vectors_is_a_rotation() -> None:
    for source, target in (([0, 0, 1.0], [0, 0, -1.0]), ([1.0, 0, 0], [0, 1.0, 0])):
        rotation = rotation_between(np.array(source), np.array(target))
        np.testing.assert_allclose(rotation @ source, target, atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)


@pytest.mark.parametrize("write", [write_colmap_text, write_colmap_binary])
def test_colmap_model_is_read_by_pycolmap(tmp_path: Path, write) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    cameras = make_cameras()
    points, colors = np.random.default_rng(0).normal(size=(7, 3)), np.arange(21, dtype=np.uint8).reshape(7, 3)
    write(tmp_path, cameras, ["a.png", "b.png", "c.png"], points, colors)
    model = pycolmap.Reconstruction(str(tmp_path))
    assert model.num_images() == 3 and model.num_points3D() == 7
    by_name = {image.name: image for image in model.images.values()}
    for i, name in enumerate(["a.png", "b.png", "c.png"]):
        np.testing.assert_allclose(by_name[name].cam_from_world().matrix(), cameras.w2c[i, :3], atol=1e-6)
        camera = model.cameras[by_name[name].camera_id]
        np.testing.assert_allclose(camera.calibration_matrix(), cameras.K[i], atol=1e-6)
        assert (camera.height, camera.width) == cameras.size
    np.testing.assert_allclose(model.points3D[3].xyz, points[2], atol=1e-6)
    np.testing.assert_array_equal(model.points3D[3].color, colors[2])


def test_transforms_json_looks_along_minus_z(tmp_path: Path) -> None:
    cameras = make_cameras()
    write_transforms(tmp_path / "transforms.json", cameras, ["images/0.png", "images/1.png", "images/2.png"], "points.ply")
    content = json.loads((tmp_path / "transforms.json").read_text())
    pose = np.array(content["frames"][2]["transform_matrix"])
    np.testing.assert_allclose(-pose[:3, 2], cameras.c2w[2, :3, 2])
    np.testing.assert_allclose(pose[:3, 1], -cameras.c2w[2, :3, 1])
    assert (content["frames"][0]["fl_y"], content["frames"][0]["w"]) == (72, 64)
