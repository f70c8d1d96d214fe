"""The page: viser shows symbols and clouds, the splats come as pictures rendered for each visitor's camera."""

import shlex
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from configs.evaluation import ViewerConfig
from utils.cameras.projection import invert_rigid
from utils.device.ports import free_port
from utils.errors import ArtifactError, MissingArtifactError, MissingDependencyError, V2WError
from utils.exports.select import scene_up
from utils.report.pictures import fit_width
from utils.scene import artifacts
from utils.scene.layout import RunLayout, SceneLayout
from utils.scene.trajectories import load_trajectory, save_trajectory
from utils.splatting.checkpoint import PREVIEW, load_checkpoint
from utils.splatting.render import SplatView, median_depth, resolve_rasterizer
from utils.types import NULL_REPORTER, Alignment, Array, CameraSet, Reporter, Scene
from utils.viewer.picture import MODES, picture
from utils.viewer.pose import ViewPose, from_page, path_through, render_size, to_page, vertical_fov
from utils.viewer.source import Source, locate_source

# A view counts as still after this long without a change.
_STILL_SECONDS = 0.2
# How often the training that is shown is looked at.
_WATCH_SECONDS = 2.0
_MAX_CLOUD_POINTS = 300_000
# Camera symbols nearer to the visitor than this many times their size are hidden.
_CLEARANCE = 5.0
# A far plane from here on means none.
_FARTHEST = 1e6
_THUMBNAIL_WIDTH = 160
_FRAMES_BETWEEN_VIEWS = 30


@dataclass
class Exhibit:
    """What is shown.

    Attributes:
        view: the splats.
        scene: frames, depth and poses as stage 0 left them.
        alignment: for the canonical cloud; None if it is not there any more.
        path: the fly-through; None if there is none.
        folder: where recorded paths go.
        unit: the page's unit of length in scene units; it stays when a training that goes on moves the splats.
        source: the training the splats come from.
        shown: its checkpoint file that is shown, and that file's time.
    """

    view: SplatView
    scene: Scene
    alignment: Alignment | None
    path: CameraSet | None
    folder: Path
    unit: float
    source: Source
    shown: tuple[Path, int]

    def refreshed(self) -> "Exhibit | None":
        """The same with the training's newest splats; None if there is nothing new, or nothing whole.

        Raises:
            V2WError: the new checkpoint cannot be read.
        """
        latest = self.source.latest()
        if latest is None or latest == self.shown:
            return None
        return replace(self, view=replace(self.view, trained=load_checkpoint(latest[0])), shown=latest)


def run(config: ViewerConfig, report: Reporter = NULL_REPORTER) -> str:
    """Serves the page until interrupted; returns a closing word."""
    app = ViewerApp(load_exhibit(config), config)
    report.note(f"viewer: open {app.url} (Ctrl+C ends it)")
    if app.port != config.port:
        report.note(f"viewer: port {config.port} is taken, {app.port} is used instead")
    try:
        app.serve()
    except KeyboardInterrupt:
        app.stop()
    return "viewer closed"


def load_exhibit(config: ViewerConfig) -> Exhibit:
    """Reads what the viewer shows.

    Raises:
        V2WError: no trained splats, or a backend that cannot run.
    """
    source = locate_source(config)
    rasterizer, device, _ = resolve_rasterizer(config.rasterizer, config.device)
    shown = source.latest()
    if shown is None:
        raise MissingArtifactError(f"{source.folder} has just been taken away", "is a training being started? Try again in a moment")
    trained = load_checkpoint(shown[0])
    far = config.far_plane if config.far_plane < _FARTHEST else float("inf")
    view = SplatView(trained, rasterizer, device, near=config.near_plane * median_depth(trained), far=far)
    path_json = SceneLayout(config.root_path).path_json
    return Exhibit(
        view=view,
        scene=artifacts.load_scene(config.root_path),
        alignment=_alignment(source.run, config.global_opt_subdir),
        path=load_trajectory(path_json) if path_json.is_file() else None,
        folder=path_json.parent,
        unit=view.median_depth,
        source=source,
        shown=shown,
    )


def _alignment(run_layout: RunLayout, subdir: str) -> Alignment | None:
    for folder in (run_layout.root / subdir, run_layout.after_non_rigid_icp):
        try:
            return artifacts.load_alignment(folder)
        except ArtifactError:
            continue
    return None


@dataclass
class _Visitor:
    """One open page: its latest change, its camera symbols with their places, and the thread that renders for it."""

    client: Any
    changed: threading.Event = field(default_factory=threading.Event)
    frusta: list[tuple[Any, Array]] = field(default_factory=list)
    gone: bool = False
    playing: bool = False
    thread: threading.Thread | None = None


class ViewerApp:
    """The running page.

    Args:
        exhibit: what is shown.
        config: how.

    Raises:
        MissingDependencyError: viser is not installed.
    """

    def __init__(self, exhibit: Exhibit, config: ViewerConfig):
        try:
            import viser
        except ModuleNotFoundError as error:
            raise MissingDependencyError("the viewer needs the package 'viser', which is not installed", "pip install viser") from error
        self.exhibit, self.config = exhibit, config
        self.port = free_port(config.host, config.port)
        self.server = viser.ViserServer(host=config.host, port=self.port, label="video_to_world", verbose=False)
        self._drawing = threading.Lock()  # one render at a time: it uses all cores by itself
        self._visitors: dict[int, _Visitor] = {}
        self._recorded: list[ViewPose] = []
        self._closing = threading.Event()
        self.server.gui.configure_theme(dark_mode=True, show_share_button=False)
        self.server.scene.set_up_direction(tuple(scene_up(exhibit.view.trained.cameras)))
        self._build_controls()
        self._add_clouds()
        self.server.on_client_connect(self._welcome)
        self.server.on_client_disconnect(self._farewell)
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def url(self) -> str:
        """Where the page is."""
        shown = "localhost" if self.config.host in ("127.0.0.1", "0.0.0.0") else self.config.host
        return f"http://{shown}:{self.port}"

    def serve(self) -> None:
        """Blocks until `stop`."""
        self._closing.wait()

    def stop(self) -> None:
        """Closes the page."""
        self._closing.set()
        for visitor in self._visitors.values():
            visitor.gone = True
            visitor.changed.set()
        self.server.stop()

    # -------------------------------------------------------------------------------------------- controls

    def _build_controls(self) -> None:
        gui, trained = self.server.gui, self.exhibit.view.trained
        self.headline = gui.add_markdown(self._headline())
        self.status = gui.add_markdown("")
        with gui.add_folder("Picture"):
            self.mode = gui.add_dropdown("Show", MODES, initial_value="rgb")
            self.white = gui.add_checkbox("White background", initial_value=False)
            self.side = gui.add_slider("Longest side", min=160, max=1920, step=80, initial_value=self.config.max_side)
            screenshot = gui.add_button("Save screenshot")
        with gui.add_folder("Scene"):
            self.show_splats = gui.add_checkbox("Splats", initial_value=True)
            self.show_cameras = gui.add_checkbox("Cameras", initial_value=self.config.show_cameras)
            self.show_input = gui.add_checkbox("Cloud before alignment", initial_value=False)
            self.show_canonical = gui.add_checkbox("Cloud after alignment", initial_value=False, disabled=self.exhibit.alignment is None)
            last = len(trained.cameras) - 1
            self.cloud_frame = gui.add_slider("Only frame (-1: all)", min=-1, max=max(last, 0), step=1, initial_value=-1)
        with gui.add_folder("Camera path"):
            play = gui.add_button("Play or stop fly-through", disabled=self.exhibit.path is None)
            add = gui.add_button("Add this view")
            clear = gui.add_button("Forget views")
            save = gui.add_button("Save path")
            self.path_words = gui.add_markdown("No views recorded.")
        for control in (self.mode, self.white, self.side, self.show_splats):
            control.on_update(lambda _: self._redraw_all())
        self.show_cameras.on_update(lambda _: self._update_cameras())
        for control in (self.show_input, self.show_canonical, self.cloud_frame):
            control.on_update(lambda _: self._add_clouds())
        screenshot.on_click(self._send_screenshot)
        play.on_click(self._play)
        add.on_click(self._record)
        clear.on_click(lambda _: self._forget())
        save.on_click(self._save)

    def _headline(self) -> str:
        trained, (path, written) = self.exhibit.view.trained, self.exhibit.shown
        words = f"**{len(trained.splats):,} splats** ({trained.renderer}), {len(trained.cameras)} frames"
        when = time.strftime("%H:%M:%S", time.localtime(written / 1e9))
        return f"{words}, **unfinished training**, as of {when}" if path.name == PREVIEW else words

    def _watch(self) -> None:
        """Shows newer splats of the same training as soon as they are there."""
        while not self._closing.wait(_WATCH_SECONDS):
            self.refresh()

    def refresh(self) -> bool:
        """Takes the training's newest splats, if there are any; returns whether."""
        try:
            fresh = self.exhibit.refreshed()
        except V2WError:  # replaced while it was read: the next look finds the new one
            return False
        if fresh is None:
            return False
        self.exhibit = fresh
        self.headline.content = self._headline()
        for visitor in list(self._visitors.values()):
            for frustum, _ in visitor.frusta:
                frustum.remove()
            visitor.frusta.clear()
            self._add_cameras(visitor)
        self._redraw_all()
        return True

    def _update_cameras(self) -> None:
        for visitor in self._visitors.values():
            self._show_frusta(visitor)

    def _add_clouds(self) -> None:
        """Puts the clouds that are wanted on the page, takes the others off."""
        chosen = self.cloud_frame.value
        for name, shown, make in (
            ("/before", self.show_input.value, self._input_cloud),
            ("/after", self.show_canonical.value, self._canonical_cloud),
        ):
            if not shown:
                self.server.scene.remove_by_name(name)
                continue
            points, colors = make(None if chosen < 0 else chosen)
            keep = np.random.default_rng(0).permutation(len(points))[:_MAX_CLOUD_POINTS]
            self.server.scene.add_point_cloud(
                name, (points[keep] / self.exhibit.unit).astype(np.float32), colors[keep], point_size=0.004, point_shape="circle"
            )

    def _canonical_cloud(self, position: int | None) -> tuple[Array, Array]:
        alignment = self.exhibit.alignment
        assert alignment is not None
        cloud = alignment.cloud
        if position is not None:
            cloud = cloud.select(cloud.frame == alignment.cameras.frame_ids[position])
        return cloud.points, cloud.colors

    def _input_cloud(self, position: int | None) -> tuple[Array, Array]:
        """World points of stage 0's depth and poses."""
        scene, trained = self.exhibit.scene, self.exhibit.view.trained.cameras
        frames = trained.frame_ids if position is None else trained.frame_ids[position : position + 1]
        c2w = invert_rigid(scene.cameras.w2c)
        points, colors = [], []
        for frame in frames:
            y, x = np.nonzero(scene.valid[frame])
            k, depth = scene.cameras.K[frame], scene.depth[frame, y, x].astype(np.float64)
            rays = np.stack([(x + 0.5 - k[0, 2]) / k[0, 0], (y + 0.5 - k[1, 2]) / k[1, 1], np.ones(len(x))], axis=1)
            points.append((rays * depth[:, None]) @ c2w[frame, :3, :3].T + c2w[frame, :3, 3])
            colors.append(scene.images[frame, y, x])
        return np.concatenate(points), np.concatenate(colors)

    def _add_cameras(self, visitor: _Visitor) -> None:
        """A frustum with its picture for every trained camera; a click takes the visitor there."""
        cameras, unit = self.exhibit.view.trained.cameras, self.exhibit.unit
        for i, frame_id in enumerate(cameras.frame_ids):
            wxyz, position = to_page(cameras.c2w[i], unit)
            fov = vertical_fov(cameras.K[i], cameras.size)
            frustum = visitor.client.scene.add_camera_frustum(
                f"/cameras/{frame_id:05d}",
                fov=fov,
                aspect=cameras.size[1] / cameras.size[0],
                scale=self.config.training_cameras_scale,
                thickness=0.02 * self.config.training_cameras_scale,
                color=(240, 150, 60) if self.exhibit.view.trained.heldout[i] else (90, 160, 250),
                image=fit_width(self.exhibit.scene.images[frame_id], _THUMBNAIL_WIDTH),
                wxyz=wxyz,
                position=position,
                visible=False,
            )
            frustum.on_click(lambda _, i=i, fov=fov: self._go_to(visitor.client, cameras.c2w[i], fov))
            visitor.frusta.append((frustum, position))

    def _show_frusta(self, visitor: _Visitor) -> None:
        """Shows the cameras that are wanted; those next to the visitor would cover the view and are left out."""
        nearest = _CLEARANCE * self.config.training_cameras_scale
        for frustum, position in visitor.frusta:
            visible = self.show_cameras.value and float(np.linalg.norm(position - visitor.client.camera.position)) > nearest
            if frustum.visible != visible:
                frustum.visible = visible

    def _go_to(self, client: Any, c2w: Array, fov: float) -> None:
        wxyz, position = to_page(c2w, self.exhibit.unit)
        with client.atomic():
            client.camera.wxyz, client.camera.position, client.camera.fov = wxyz, position, fov

    # -------------------------------------------------------------------------------------------- visitors

    def _welcome(self, client: Any) -> None:
        """Puts a new visitor at the middle camera and starts rendering for them."""
        cameras = self.exhibit.view.trained.cameras
        middle = len(cameras) // 2
        client.camera.near, client.camera.far = 0.005, 200.0
        self._go_to(client, cameras.c2w[middle], vertical_fov(cameras.K[middle], cameras.size))
        client.camera.look_at = (cameras.c2w[middle, :3, 3] + self.exhibit.unit * cameras.c2w[middle, :3, 2]) / self.exhibit.unit
        visitor = _Visitor(client)
        self._add_cameras(visitor)
        self._visitors[client.client_id] = visitor
        client.camera.on_update(lambda _: visitor.changed.set())
        visitor.changed.set()
        visitor.thread = threading.Thread(target=self._render_for, args=(visitor,), daemon=True)
        visitor.thread.start()

    def _farewell(self, client: Any) -> None:
        visitor = self._visitors.pop(client.client_id, None)
        if visitor is not None:
            visitor.gone = True
            visitor.changed.set()

    def _redraw_all(self) -> None:
        for visitor in self._visitors.values():
            visitor.changed.set()

    def _render_for(self, visitor: _Visitor) -> None:
        """Coarse pictures while the view changes, a sharp one when it has been still for a moment."""
        while True:
            visitor.changed.wait()
            if visitor.gone:
                return
            visitor.changed.clear()
            self._show_frusta(visitor)
            self._send_picture(visitor, self.config.moving_side)
            if not visitor.changed.wait(_STILL_SECONDS) and not visitor.gone:
                self._send_picture(visitor, self.side.value)

    def _send_picture(self, visitor: _Visitor, longest: int) -> None:
        client = visitor.client
        if not self.show_splats.value:
            client.scene.set_background_image(np.full((8, 8, 3), 30, np.uint8), format="png")
            return
        pose = self._pose_of(client)
        size = render_size(client.camera.aspect, longest)
        with self._drawing:
            started = time.perf_counter()
            image, depth = picture(self.exhibit.view, pose, size, self.mode.value, self.white.value)
            seconds = time.perf_counter() - started
        client.scene.set_background_image(image, format="jpeg", jpeg_quality=90, depth=depth / self.exhibit.unit)
        self.status.content = f"{size[1]} x {size[0]} in {1000 * seconds:.0f} ms"

    def _pose_of(self, client: Any) -> ViewPose:
        camera = client.camera
        return from_page(camera.wxyz, camera.position, camera.fov, self.exhibit.unit)

    # -------------------------------------------------------------------------------------------- paths

    def _play(self, event: Any) -> None:
        """Takes the visitor along the fly-through, about 24 views a second if rendering keeps up; a second click stops it."""
        path, visitor = self.exhibit.path, self._visitors.get(event.client.client_id)
        if path is None or visitor is None:
            return
        visitor.playing = not visitor.playing
        if not visitor.playing:
            return
        for c2w, K in zip(path.c2w, path.K, strict=True):
            if self._closing.is_set() or visitor.gone or not visitor.playing:
                return
            self._go_to(event.client, c2w, vertical_fov(K, path.size))
            time.sleep(1 / 24)
        visitor.playing = False

    def _record(self, event: Any) -> None:
        self._recorded.append(self._pose_of(event.client))
        self.path_words.content = f"{len(self._recorded)} views recorded."

    def _forget(self) -> None:
        self._recorded.clear()
        self.path_words.content = "No views recorded."

    def _save(self, _: Any) -> None:
        self.save_path()

    def save_path(self) -> Path | None:
        """Writes the recorded views as a camera path that `eval_gs` renders; returns its file, None without views."""
        if not self._recorded:
            self.path_words.content = "Add a view first."
            return None
        folder = self.exhibit.folder
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        while (target := folder / f"recorded_{number:02d}_transforms.json").exists():
            number += 1
        size = self.exhibit.view.trained.cameras.size
        save_trajectory(target, path_through(self._recorded, size, _FRAMES_BETWEEN_VIEWS))
        self.path_words.content = f"Saved. Its film:\n\n```\n{self.film_command(target)}\n```"
        return target

    def film_command(self, path: Path) -> str:
        """The command that renders a recorded path beside its file, and nothing else."""
        flags = {
            "root-path": self.config.root_path,
            "checkpoint-dir": self.exhibit.source.folder,
            "transforms-path": path,
            "out-dir": path.with_name(path.name.removesuffix("_transforms.json")),
        }
        words = ["python", "-m", "eval_gs"]
        for name, value in flags.items():
            words += [f"--config.{name}", str(value)]
        return shlex.join(
            [*words, *(f"--config.no-{name}" for name in ("metrics", "report", "render-input-poses", "render-optimised-poses"))]
        )

    def _send_screenshot(self, event: Any) -> None:
        """Sends the sharp picture of the visitor's view as a PNG."""
        import cv2

        size = render_size(event.client.camera.aspect, self.side.value)
        with self._drawing:
            image, _ = picture(self.exhibit.view, self._pose_of(event.client), size, self.mode.value, self.white.value)
        event.client.send_file_download(
            "view.png", cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes(), save_immediately=True
        )
