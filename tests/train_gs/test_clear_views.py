"""Points before a camera whose frame sees through them."""

from dataclasses import replace

import numpy as np
import torch

from tests.train_gs.test_train_gs import build, data_of, make_config, make_world
from train_gs.stage import starting_splats
from train_gs.start.clear_views import in_the_way, in_the_way_between
from utils.cameras.projection import transform
from utils.synthetic.inconsistency import rotation_matrices
from utils.types import CameraSet, CanonicalCloud

SIZE = (20, 30)


def one_camera() -> tuple[CameraSet, np.ndarray]:
    """A turned camera away from the origin, and the depth it sees: a wall at 4, something at 0.9 in the middle, unknown at the left."""
    c2w = np.eye(4)
    c2w[:3, :3] = rotation_matrices(np.array([[0.3, -0.8, 0.4]]))[0]
    c2w[:3, 3] = [3.0, -2.0, 1.0]
    K = np.array([[60.0, 0, 30], [0, 60.0, 20], [0, 0, 1]])  # of images twice as large as the depth
    depth = np.full((1, *SIZE), 4.0, np.float32)
    depth[0, 8:12, 13:17] = 0.9
    depth[0, :, :4] = 0.0
    return CameraSet(c2w=c2w[None], K=K[None], size=(40, 60), frame_ids=np.arange(1)), depth


def at(column: float, row: float, z: float) -> list[float]:
    """Camera-space point that the depth's pixel (column, row) shows at z."""
    return [(2 * column - 30) / 60 * z, (2 * row - 20) / 60 * z, z]


def test_only_points_that_the_frame_sees_through_are_in_the_way() -> None:
    cameras, depth = one_camera()
    local = np.array(
        [
            at(25, 5, 1.0),  # well before the wall
            at(25, 5, 1.3),  # nearer than the wall, but not by so much
            at(25, 5, -1.0),  # behind the camera
            at(40, 5, 1.0),  # beside the picture
            at(15, 10, 0.5),  # the thing in the middle is near itself
            at(18.5, 10, 0.5),  # beside it: an edge may be off by two pixels
            at(22.5, 10, 0.5),  # not by eight
            at(2, 5, 1.0),  # the depth is unknown there
        ]
    )
    found = in_the_way(transform(cameras.c2w[0], local), cameras, depth, 0.3)
    assert found.tolist() == [True, False, False, False, False, False, True, False]


def test_training_starts_without_them_and_held_out_frames_have_no_say() -> None:
    scene, alignment = make_world()
    blocker = transform(scene.cameras.c2w[2], np.array([[0.0, 0.0, 0.3]])).astype(np.float32)
    cloud = CanonicalCloud(
        points=np.concatenate([alignment.cloud.points, blocker]),
        colors=np.concatenate([alignment.cloud.colors, [[255, 0, 0]]]).astype(np.uint8),
        frame=np.append(alignment.cloud.frame, 5).astype(np.int32),
        pixel=np.append(alignment.cloud.pixel, 0).astype(np.int32),
    )
    alignment = replace(alignment, cloud=cloud)

    def starts_at_it(heldout: list[int], clear_views: float = 0.3) -> bool:
        config = make_config(merge_copies=False, target_num_points=10**6, clear_views=clear_views)
        data = data_of(scene, replace(alignment, heldout=np.array(heldout)), config)
        means = starting_splats(alignment, data, config).means
        return bool(((means - torch.from_numpy(blocker)).norm(dim=1) < 1e-5).any())

    assert starts_at_it(heldout=[4], clear_views=0.0)
    assert not starts_at_it(heldout=[4])
    assert starts_at_it(heldout=[0, 1, 2, 3, 4])  # the only one left stands aside of it


def test_a_world_without_such_points_starts_as_it_did() -> None:
    assert len(build(make_config(clear_views=0.3)).parameters.means) == len(build(make_config(clear_views=0.0)).parameters.means)


def beside_the_path() -> tuple[CameraSet, np.ndarray, np.ndarray]:
    """Two cameras side by side, 1 apart, a wall at 4 before both; points before the place midway between them, 0.4 and 3 away."""
    c2w = np.tile(np.eye(4), (2, 1, 1))
    c2w[:, 0, 3] = [-0.5, 0.5]
    K = np.tile(np.array([[30.0, 0, 15], [0, 30.0, 10], [0, 0, 1]]), (2, 1, 1))
    cameras = CameraSet(c2w=c2w, K=K, size=SIZE, frame_ids=np.arange(2))
    return cameras, np.full((2, *SIZE), 4.0, np.float32), np.array([[0, 0, 0.4], [0, 0, 3.0]])


def test_what_hides_the_view_from_between_two_frames_is_in_the_way() -> None:
    cameras, depth, points = beside_the_path()
    assert not in_the_way(points, cameras, depth, 0.3).any()
    assert in_the_way_between(points, cameras, depth).tolist() == [True, False]
    # Where one of the frames has something near, or does not know, the view from between is not known to be free.
    for seen in (0.5, 0.0):
        depth[1, 8:12, 13:15] = seen
        assert not in_the_way_between(points, cameras, depth).any()


def test_what_one_of_the_frames_shows_does_not_hide_the_view_from_between() -> None:
    """A thing 1 before the cameras, at the edge of the first one's picture: it has moved by half a picture in the view from between."""
    cameras, depth, _ = beside_the_path()
    thing = np.array([[-0.05, 0.0, 1.0]])
    assert in_the_way_between(thing, cameras, depth).all()
    column = int(np.floor((thing[0, 0] + 0.5) * 30 + 15))
    depth[0, 10, column] = 1.0
    assert not in_the_way_between(thing, cameras, depth).any()


def test_nothing_lies_between_two_clips_or_far_frames() -> None:
    cameras, depth, points = beside_the_path()
    assert not in_the_way_between(points, cameras, depth, np.array([0, 1])).any()
    c2w = cameras.c2w.copy()
    c2w[:, 0, 3] *= 6
    assert not in_the_way_between(points, replace(cameras, c2w=c2w), depth).any()


def test_background_of_the_other_side_is_in_the_way_of_who_looks_back() -> None:
    """Two cameras face each other, a thing at 4 between them; a point at 2 before the second one, half as far as the thing."""
    c2w = np.tile(np.eye(4), (2, 1, 1))
    c2w[1] = np.diag([-1.0, 1, -1, 1])
    c2w[1, 2, 3] = 8.0
    K = np.tile(np.array([[30.0, 0, 15], [0, 30.0, 10], [0, 0, 1]]), (2, 1, 1))
    cameras, depth = CameraSet(c2w=c2w, K=K, size=SIZE, frame_ids=np.arange(2)), np.full((2, *SIZE), 4.0, np.float32)
    point = np.array([[0.0, 0.0, 6.0]])
    assert in_the_way(point, cameras, depth, 0.3, made_by=np.array([0])).all()
    assert not in_the_way(point, cameras, depth, 0.3, made_by=np.array([1])).any()  # its own foreground, where depth is better known
    assert not in_the_way(point, cameras, depth, 0.3).any()
    farther = np.array([[0.0, 0.0, 5.0]])  # 3 before the second: too near the thing
    assert not in_the_way(farther, cameras, depth, 0.3, made_by=np.array([0])).any()
