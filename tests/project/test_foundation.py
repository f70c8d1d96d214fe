"""Geometry laws, manifests, artifacts and configs: what every stage stands on."""

import dataclasses
import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.base import from_plain
from utils.cameras import se3
from utils.cameras.projection import project, transform, unproject_depth
from utils.cameras.rotations import matrix_to_quat, normal_to_quat, quat_multiply, quat_to_matrix
from utils.errors import (
    ArtifactError,
    ConfigError,
    CorruptArtifactError,
    MissingArtifactError,
    MissingDependencyError,
    SchemaVersionError,
    StaleArtifactError,
    UnknownBackendError,
)
from utils.registry import Registry
from utils.reporting import number_ranges
from utils.runtime import run_stage
from utils.scene.artifacts import artifact_id, load_alignment, load_scene, save_alignment, save_results
from utils.scene.layout import SceneLayout
from utils.scene.manifest import is_current, read_manifest, require_fresh, sha256, write_manifest
from utils.scene.transaction import publish
from utils.types import Alignment, CameraSet, CanonicalCloud, LatticeFields, Scene


def random_twists(seed: int, scale: float, dtype: torch.dtype) -> torch.Tensor:
    xi = torch.randn(64, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    xi[:, :3] *= scale / xi[:, :3].norm(dim=1, keepdim=True)
    return xi.to(dtype)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-4, 0.05, 0.1, 0.11, 1.0, 3.0, math.pi - 1e-4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 5e-4)])
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 1000))
def test_exp_log_round_trip(angle, dtype, tolerance, seed):
    xi = random_twists(seed, angle, dtype)
    torch.testing.assert_close(se3.log(se3.exp(xi)), xi, atol=tolerance * 10, rtol=0)
    composed = se3.exp(xi) @ se3.inverse(se3.exp(xi))
    torch.testing.assert_close(composed, torch.eye(4, dtype=dtype).expand_as(composed), atol=tolerance, rtol=0)


def test_exp_matches_matrix_exponential():
    xi = random_twists(3, 1.3, torch.float64)
    generator = torch.zeros(64, 4, 4, dtype=torch.float64)
    generator[:, :3, :3] = se3.skew(xi[:, :3])
    generator[:, :3, 3] = xi[:, 3:]
    torch.testing.assert_close(se3.exp(xi), torch.linalg.matrix_exp(generator), atol=1e-12, rtol=0)


@pytest.mark.parametrize("angle", [0.0, 1e-8, 1e-3, 0.0999, 0.1001])
def test_exp_gradient_is_right_near_identity(angle):
    xi = random_twists(1, angle, torch.float64)[:4].requires_grad_()
    assert torch.autograd.gradcheck(se3.exp, (xi,), eps=1e-6, atol=1e-6)
    small = xi.detach().float().requires_grad_()
    se3.exp(small).sum().backward()
    assert torch.isfinite(small.grad).all()


def test_log_gradient_is_finite_at_identity():
    transform_ = torch.eye(4, dtype=torch.float64)[None].requires_grad_()
    se3.log(transform_).sum().backward()
    assert torch.isfinite(transform_.grad).all()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_quaternions_are_rotations(seed):
    q = torch.randn(2, 32, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    product = quat_to_matrix(quat_multiply(q[0], q[1]))
    torch.testing.assert_close(product, quat_to_matrix(q[0]) @ quat_to_matrix(q[1]))
    back = quat_to_matrix(matrix_to_quat(quat_to_matrix(q[0])))
    torch.testing.assert_close(back, quat_to_matrix(q[0]))


def test_normal_to_quat_takes_z_to_the_normal():
    draw = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0.02, -0.01, -1], [1e-5, 0, -1]], dtype=torch.float64)
    normals = torch.nn.functional.normalize(torch.cat([draw, near]), dim=-1)
    torch.testing.assert_close(quat_to_matrix(normal_to_quat(normals))[..., 2], normals, atol=1e-9, rtol=0)
    single = quat_to_matrix(normal_to_quat(normals.float()))[..., 2]
    torch.testing.assert_close(single, normals.float(), atol=1e-6, rtol=0)


def example_cameras(frames: int = 3, size: tuple[int, int] = (6, 8)) -> CameraSet:
    c2w = se3.exp(random_twists(5, 0.4, torch.float64)[:frames]).numpy()
    K = np.tile(np.array([[7.0, 0, 4.1], [0, 7.5, 2.9], [0, 0, 1]]), (frames, 1, 1))
    return CameraSet(c2w=c2w, K=K, size=size, frame_ids=np.arange(frames))


def example_scene(frames: int = 3) -> Scene:
    rng = np.random.default_rng(0)
    cameras = example_cameras(frames)
    shape = (frames, *cameras.size)
    return Scene(
        cameras=cameras,
        images=rng.integers(0, 255, (*shape, 3), dtype=np.uint8),
        depth=rng.uniform(1, 3, shape).astype(np.float32),
        confidence=rng.uniform(1, 5, shape).astype(np.float32),
    )


def test_unproject_lands_on_pixel_centres():
    scene = example_scene()
    x, y, z = project(unproject_depth(scene.depth[0], scene.cameras.K[0]), scene.cameras.K[0])
    np.testing.assert_allclose(x[0], np.arange(8) + 0.5, atol=1e-5)
    np.testing.assert_allclose(y[:, 0], np.arange(6) + 0.5, atol=1e-5)
    np.testing.assert_allclose(z, scene.depth[0], atol=1e-6)


def test_camera_set_inverse_and_resize():
    cameras = example_cameras()
    np.testing.assert_allclose(cameras.w2c @ cameras.c2w, np.tile(np.eye(4), (3, 1, 1)), atol=1e-12)
    point = np.array([0.2, -0.1, 2.0])
    x, y, _ = project(point, cameras.K[0])
    big = cameras.resized((12, 24))
    x2, y2, _ = project(point, big.K[0])
    np.testing.assert_allclose([x2, y2], [x * 3, y * 2])
    np.testing.assert_allclose(transform(cameras.w2c[1], transform(cameras.c2w[1], point)), point)


def make_root(tmp_path: Path, scene: Scene) -> Path:
    layout = SceneLayout(tmp_path)
    with publish(layout.npz_dir, "geometry/1") as folder:
        save_results(folder, scene)
        write_manifest(folder, schema="scene/1", config={"a": 1}, inputs={})
    return tmp_path


def test_results_round_trip(tmp_path):
    scene = example_scene()
    loaded = load_scene(make_root(tmp_path, scene))
    np.testing.assert_array_equal(loaded.images, scene.images)
    np.testing.assert_allclose(loaded.depth, scene.depth)
    np.testing.assert_allclose(loaded.cameras.c2w, scene.cameras.c2w, atol=1e-6)
    np.testing.assert_allclose(loaded.cameras.K, scene.cameras.K, rtol=1e-6)


def damage(root: Path, **changes) -> None:
    path = SceneLayout(root).results_npz
    with np.load(path) as stored:
        arrays = {k: stored[k] for k in stored.files}
    for key, change in changes.items():
        if change is None:
            del arrays[key]
        else:
            arrays[key] = change(arrays[key])
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": None}, "lacks depth"),
        ({"intrinsics": None, "extrinsics": None}, "lacks extrinsics, intrinsics"),
        ({"depth": lambda a: a[:, :3]}, "another aspect"),
        ({"depth": lambda a: a * np.nan}, "with valid depth"),
        ({"image": lambda a: a[..., 0]}, "image has shape"),
        ({"image": lambda a: a.astype("U3")}, "expected numbers"),
        ({"intrinsics": lambda a: -a}, "focal length is not positive"),
        ({"extrinsics": lambda a: a * 2}, "no rigid motions"),
        ({"extrinsics": lambda a: a[:2]}, "several numbers of frames"),
        ({"extrinsics": lambda a: a * [[1, 1, -1, 1]]}, "mirrored cameras"),
    ],
)
def test_bad_results_are_explained(tmp_path, changes, words):
    root = make_root(tmp_path, example_scene())
    damage(root, **changes)
    with pytest.raises(CorruptArtifactError, match=words) as caught:
        load_scene(root)
    assert caught.value.hint


def test_missing_and_truncated_results(tmp_path):
    with pytest.raises(MissingArtifactError, match="is missing"):
        load_scene(tmp_path)
    root = make_root(tmp_path, example_scene())
    path = SceneLayout(root).results_npz
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        load_scene(root)


def test_partly_unknown_depth_becomes_zero_with_lowest_confidence(tmp_path):
    root = make_root(tmp_path, example_scene())

    def poke(depth):
        depth[0, 0, :3] = [np.nan, -1, np.inf]
        return depth

    damage(root, depth=poke)
    scene = load_scene(root)
    assert (scene.depth[0, 0, :3] == 0).all() and not scene.valid[0, 0, :3].any()
    assert (scene.confidence[0, 0, :3] <= scene.confidence.min()).all()


def example_alignment() -> Alignment:
    cameras = example_cameras()
    rng = np.random.default_rng(1)
    return Alignment(
        cameras=cameras,
        fields=LatticeFields(nodes=rng.normal(size=(3, 2, 3, 4, 3)).astype(np.float32), inv_depth_range=np.tile([0.2, 1.0], (3, 1))),
        cloud=CanonicalCloud(
            points=rng.normal(size=(10, 3)).astype(np.float32),
            colors=rng.integers(0, 255, (10, 3), dtype=np.uint8),
            frame=np.arange(10, dtype=np.int32) // 4,
            pixel=np.arange(10, dtype=np.int32),
        ),
        original_w2c=cameras.w2c,
        aligned=np.array([True, True, False]),
    )


def test_alignment_round_trip(tmp_path):
    alignment = example_alignment()
    with publish(tmp_path / "after_non_rigid_icp", "alignment/2") as folder:
        save_alignment(folder, alignment, {"alignment": {"stride": 2}})
        write_manifest(folder, schema="alignment/2", config={}, inputs={})
    loaded = load_alignment(tmp_path / "after_non_rigid_icp")
    np.testing.assert_allclose(loaded.cameras.c2w, alignment.cameras.c2w, atol=1e-12)
    np.testing.assert_array_equal(loaded.fields.nodes, alignment.fields.nodes)
    np.testing.assert_array_equal(loaded.cloud.points, alignment.cloud.points)
    np.testing.assert_array_equal(loaded.aligned, alignment.aligned)
    plyfile = pytest.importorskip("plyfile")
    vertex = plyfile.PlyData.read(str(tmp_path / "after_non_rigid_icp" / "aligned_points.ply"))["vertex"]
    np.testing.assert_array_equal(np.stack([vertex[c] for c in "xyz"], 1), alignment.cloud.points)
    np.testing.assert_array_equal(vertex["green"], alignment.cloud.colors[:, 1])


def test_a_failing_stage_leaves_the_earlier_result(tmp_path):
    final = tmp_path / "artifact"
    with publish(final, "s/1") as folder:
        (folder / "data").write_text("first")
        write_manifest(folder, schema="s/1", config={}, inputs={})
    with pytest.raises(RuntimeError), publish(final, "s/1") as folder:
        (folder / "data").write_text("second")
        raise RuntimeError("killed")
    assert (final / "data").read_text() == "first"
    assert [p.read_text() for p in tmp_path.glob("artifact.failed-*/data")] == ["second"]
    assert read_manifest(final, "s/1", "x").schema == "s/1"


def test_manifest_tells_current_stale_and_damaged(tmp_path):
    final = tmp_path / "artifact"
    with publish(final, "s/1") as folder:
        (folder / "data").write_text("x")
        write_manifest(folder, schema="s/1", config={"lr": 1, "root_path": "a"}, inputs={"scene": "1"})
    assert is_current(final, "s/1", {"lr": 1, "root_path": "elsewhere"}, {"scene": "1"})
    assert not is_current(final, "s/1", {"lr": 2, "root_path": "a"}, {"scene": "1"})
    assert not is_current(final, "s/1", {"lr": 1, "root_path": "a"}, {"scene": "2"})
    with pytest.raises(StaleArtifactError, match="earlier scene"):
        require_fresh(final, read_manifest(final, "s/1", "x"), {"scene": "2"}, "again")
    with pytest.raises(SchemaVersionError):
        read_manifest(final, "s/2", "x")
    (final / "data").write_text("longer")
    with pytest.raises(CorruptArtifactError, match="has changed"):
        read_manifest(final, "s/1", "x")
    with pytest.raises(MissingArtifactError):
        read_manifest(tmp_path / "nothing", "s/1", "x")


def test_an_artifact_made_from_earlier_inputs_is_refused(tmp_path):
    with publish(tmp_path / "after_non_rigid_icp", "alignment/2") as folder:
        (folder / "data").write_text("x")
        made = write_manifest(folder, schema="s/1", config={}, inputs={"results": "1"})
    assert artifact_id(tmp_path / "after_non_rigid_icp", "s/1", made_from={"results": "1"}) == made.content_id
    with pytest.raises(StaleArtifactError, match="earlier results") as caught:
        artifact_id(tmp_path / "after_non_rigid_icp", "s/1", made_from={"results": "2"})
    assert "frame_to_model_icp" in caught.value.hint


def test_content_id_ignores_paths_and_times_but_not_settings(tmp_path):
    ids = []
    for name, config in (("a", {"lr": 1, "out_dir": "p"}), ("b", {"lr": 1, "out_dir": "q"}), ("c", {"lr": 2, "out_dir": "p"})):
        with publish(tmp_path / name, "s/1") as folder:
            (folder / "data").write_text("x")
            (folder / "report.json").write_text(json.dumps({"seconds": name}))
            ids.append(write_manifest(folder, schema="s/1", config=config, inputs={}, seconds=len(ids)).content_id)
    assert ids[0] == ids[1] != ids[2]


def test_writing_below_a_file_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write"), publish(tmp_path / "file" / "artifact", "s/1"):
        pass


def test_registry_names_what_is_wrong():
    registry = Registry("matcher", good="collections:OrderedDict", absent="no_such_package_at_all:X")
    assert registry.load("good").__name__ == "OrderedDict"
    with pytest.raises(UnknownBackendError, match="matcher 'bad' is unknown") as caught:
        registry.load("bad")
    assert "absent, good" in caught.value.hint
    with pytest.raises(MissingDependencyError, match="no_such_package_at_all"):
        registry.load("absent")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    x: float = 1.0
    where: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = Inner()
    names: tuple[str, ...] = ()


def test_config_from_plain_is_strict():
    config = from_plain(Outer, {"inner": {"x": 2.0, "where": "a/b"}, "names": ["n"]})
    assert config == Outer(inner=Inner(x=2.0, where=Path("a/b")), names=("n",))
    with pytest.raises(ConfigError, match=r"config\.inner\.y"):
        from_plain(Outer, {"inner": {"y": 2}})


def test_runs_of_numbers_are_told_short():
    assert number_ranges([3, 4, 5, 9]) == "3-5, 9" and number_ranges([0]) == "0" and number_ranges([]) == ""


@pytest.mark.parametrize(
    "number",
    [
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.EIO,
        errno.ESTALE,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EMFILE,
        errno.EEXIST,
        errno.ENOTDIR,
    ],
)
def test_what_the_system_refuses_is_no_fault_of_the_program(number, capsys):
    def work():
        raise OSError(number, os.strerror(number), "scene/x")

    with pytest.raises(SystemExit) as caught:
        run_stage(work)
    error, hint = capsys.readouterr().err.strip().splitlines()
    assert caught.value.code == 2 and os.strerror(number) in error and "scene/x" in error and hint.startswith("hint: ")


def test_a_file_that_cannot_be_read_is_named():
    with pytest.raises(OSError, match="/proc/self/mem"):
        sha256(Path("/proc/self/mem"))


@pytest.mark.parametrize("kind", ["long", "loop"])
def test_paths_that_no_file_system_has_end_in_two_lines(kind, tmp_path, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    path = tmp_path / ("a" * 300 if kind == "long" else "loop")
    with pytest.raises(SystemExit) as caught:
        run_stage(lambda: path.stat() and None)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("error:") == said.count("hint:") == 1


def test_points_of_a_cloud_are_chosen_by_mask_rows_or_slice() -> None:
    cloud = CanonicalCloud(
        points=np.arange(12, dtype=np.float32).reshape(4, 3), colors=np.arange(12, dtype=np.uint8).reshape(4, 3),
        frame=np.array([0, 0, 1, 1], np.int32), pixel=np.array([5, 6, 7, 8], np.int32),
    )  # fmt: skip
    mask = np.array([True, False, False, True])
    assert cloud.select(np.ones(4, bool)) is cloud
    for index in (mask, np.flatnonzero(mask), slice(0, 4, 3)):
        chosen = cloud.select(index)
        assert chosen.pixel.tolist() == [5, 8] and chosen.frame.tolist() == [0, 1]
        assert chosen.points[:, 0].tolist() == [0, 9] and chosen.colors[:, 2].tolist() == [2, 11]
    assert len(cloud.select(np.zeros(4, bool))) == 0
