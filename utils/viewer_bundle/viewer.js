// A viewer of Gaussian splats on a canvas. See README.md for what it offers; nothing here needs the network.

import { Controls } from "./controls.js";
import { DepthOrder } from "./depth_order.js";
import { add, axis, between, dot, invert, length, lookAt, poseOf, unit } from "./pose.js";
import { Renderer } from "./renderer.js";
import { readSplats } from "./splat_files.js";

const STILL_MS = 180;
const SLOW_MS = 45;
const FAST_MS = 22;
const COARSEST = 0.3;

/**
 * Starts a viewer.
 *
 * @param {HTMLCanvasElement} canvas fills its place in the page; its resolution is managed here
 * @param {object} settings
 * @param {ArrayBuffer|string} [settings.splats] a file's bytes, or where to fetch them; may come later by `load`
 * @param {object[]} [settings.cameras] the clip's cameras {c2w, fx, fy, cx, cy, width, height}; the first is home
 * @param {{poses: object[], seconds: number}} [settings.path] fly-through of poses {c2w, fov}
 * @param {number[]} [settings.up] the world's up direction
 * @param {number[]} [settings.background] [r, g, b], 0..1
 * @param {number} [settings.near] nearest distance drawn, in scene units
 * @param {number} [settings.maxDegree] spherical harmonics beyond this degree are left out
 * @param {number} [settings.pixelRatio] device pixels per CSS pixel
 * @returns {Promise<Viewer>} resolves when the first picture is drawn
 */
export async function createViewer(canvas, settings = {}) {
  const viewer = new Viewer(canvas, settings);
  if (settings.splats) await viewer.load(settings.splats);
  return viewer;
}

export class Viewer {
  constructor(canvas, settings) {
    this.canvas = canvas;
    this.cameras = settings.cameras ?? [];
    this.path = settings.path ?? null;
    this.up = unit(settings.up ?? [0, -1, 0]);
    this.background = settings.background ?? [0, 0, 0];
    this.near = settings.near ?? 0;
    this.unit = 1;
    this.pivot = [0, 0, 1];
    this.playing = false;
    this.table = null;
    this._maxDegree = settings.maxDegree ?? 3;
    this._pixelRatio = settings.pixelRatio ?? Math.min(globalThis.devicePixelRatio || 1, 2);
    this._pose = { c2w: [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1], fov: 0.9 };
    this._listeners = { frame: new Set(), pose: new Set(), play: new Set() };
    this._quality = 1;
    this._moved = 0;
    this._time = 0;
    this._calm = globalThis.matchMedia?.("(prefers-reduced-motion: reduce)").matches ?? false;
    this.renderer = new Renderer(canvas);
    this.order = new DepthOrder((order) => this._ordered(order));
    this.controls = new Controls(this, canvas);
    this._resize = new ResizeObserver(() => this._fit());
    this._resize.observe(canvas);
    canvas.addEventListener("webglcontextlost", (e) => e.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.renderer.restore();
      this._arrange();
    });
    this._fit();
  }

  get count() {
    return this.table?.count ?? 0;
  }

  get aspect() {
    return this.canvas.clientWidth / Math.max(this.canvas.clientHeight, 1) || 1;
  }

  /** The camera, {c2w, fov}. */
  get pose() {
    return this._pose;
  }

  /** Seconds of the fly-through. */
  get duration() {
    return this.path?.seconds ?? 0;
  }

  /** Position in the fly-through in seconds. */
  get time() {
    return this._time;
  }

  /** Calls back on "frame" (a picture was drawn), "pose" (the camera moved) or "play" (started or stopped); returns what ends it. */
  on(event, callback) {
    this._listeners[event].add(callback);
    return () => this._listeners[event].delete(callback);
  }

  /** Shows the splats of a file; the camera stays where it is if there were splats before. */
  async load(source, { keepView = this.count > 0 } = {}) {
    let bytes = source;
    if (typeof source === "string") {
      const answer = await fetch(source);
      if (!answer.ok) throw new Error(`${source}: ${answer.status}`);
      bytes = await answer.arrayBuffer();
    }
    const table = await readSplats(bytes, this._maxDegree);
    this.table = table;
    this.renderer.upload(table);
    this.order.setMeans(table.means);
    this._measure();
    if (!keepView) this.home(false);
    this._arrange();
    this._draw();
  }

  /** The clip's first camera, or all of the splats where there are no cameras. */
  home(animated = true) {
    if (!this.cameras.length) return this.frameAll(animated);
    this.pivot = this._pivotOf(this.cameras[0].c2w);
    return this.goTo(poseOf(this.cameras[0], this.aspect), animated);
  }

  /** Camera i of the clip. */
  showCamera(i, animated = true) {
    this.pivot = this._pivotOf(this.cameras[i].c2w);
    return this.goTo(poseOf(this.cameras[i], this.aspect), animated);
  }

  /** Steps back until most of the splats are in the picture. */
  frameAll(animated = true) {
    const { centre, radius } = this._extent, forward = this.count ? axis(this._pose.c2w, 2) : [0, 0, 1];
    const narrow = Math.atan(Math.tan(this._pose.fov / 2) * Math.min(1, this.aspect));
    this.pivot = centre;
    const eye = add(centre, forward, -radius / Math.max(Math.sin(narrow), 0.05));
    return this.goTo({ c2w: lookAt(eye, centre, this.up), fov: this._pose.fov }, animated);
  }

  /** Turns to the surface under a place of the canvas (CSS pixels) and orbits around it from now on. */
  focusAt(x, y) {
    const point = this.pick(x, y);
    if (!point) return null;
    const eye = axis(this._pose.c2w, 3), direction = unit(add(point, eye, -1));
    const distance = Math.max(0.6 * length(add(point, eye, -1)), 0.1 * this.unit);
    this.pivot = point;
    this.goTo({ c2w: lookAt(add(point, direction, -distance), point, this.up), fov: this._pose.fov });
    return point;
  }

  setPose(pose) {
    this._pose = { c2w: [...pose.c2w], fov: pose.fov ?? this._pose.fov };
    this._moved = performance.now();
    this._tell("pose", this._pose);
    this.invalidate();
  }

  /** Moves there within half a second, or at once where people asked for less motion. */
  goTo(pose, animated = true) {
    this.stop();
    if (!animated || this._calm) return this.setPose(pose);
    this._glide = { from: this._pose, to: pose, start: performance.now() };
    return this.invalidate();
  }

  /** Vertical field of view in radians. */
  setFov(fov) {
    this.setPose({ c2w: this._pose.c2w, fov });
  }

  setBackground(colour) {
    this.background = colour;
    this.invalidate();
  }

  /** Plays the fly-through from where it stands; `rate` 1 is real time. */
  play(rate = 1) {
    if (!this.path?.poses.length) return;
    this._glide = null;
    if (this._time >= this.duration) this._time = 0;
    this.playing = true;
    this._rate = rate;
    this._last = performance.now();
    this._tell("play", true);
    this.invalidate();
  }

  stop() {
    this._glide = null;
    if (!this.playing) return;
    this.playing = false;
    this.pivot = this._pivotOf(this._pose.c2w);
    this._tell("play", false);
  }

  /** Goes to a time of the fly-through in seconds. */
  seek(time) {
    const poses = this.path?.poses;
    if (!poses?.length) return;
    this._time = Math.max(0, Math.min(this.duration, time));
    const at = this.duration ? (this._time / this.duration) * (poses.length - 1) : 0;
    const i = Math.min(Math.floor(at), poses.length - 1), next = Math.min(i + 1, poses.length - 1);
    this.setPose(between(poses[i], poses[next], at - i));
    if (!this.playing) this.pivot = this._pivotOf(this._pose.c2w);
  }

  /** Hides the splats with a non-zero byte in a Uint8Array of `count`; null shows all. */
  setHidden(mask) {
    this.hidden = mask;
    this.order.setHidden(mask);
    this._arrange();
    this.invalidate();
  }

  /** Colours splats, see `Renderer.setTint`; null ends it. */
  setTint(values, palette) {
    this.renderer.setTint(values, palette);
    this.invalidate();
  }

  /** World point under a place of the canvas (CSS pixels) where half of the light is blocked, or null. */
  pick(x, y) {
    if (!this.table) return null;
    const { means, radii, opacities } = this.table, { c2w, fov } = this._pose;
    const eye = axis(c2w, 3), focal = this.canvas.clientHeight / (2 * Math.tan(fov / 2));
    const local = [(x - this.canvas.clientWidth / 2) / focal, (y - this.canvas.clientHeight / 2) / focal, 1];
    const ray = unit([0, 1, 2].map((r) => dot(c2w.slice(4 * r, 4 * r + 3), local)));
    const hits = [];
    for (let i = 0; i < this.count; i++) {
      if (this.hidden?.[i]) continue;
      const to = [means[3 * i] - eye[0], means[3 * i + 1] - eye[1], means[3 * i + 2] - eye[2]], along = dot(to, ray);
      if (along <= this.near) continue;
      const reach = radii[i] + along / focal, off = (dot(to, to) - along * along) / (reach * reach);
      if (off < 9) hits.push([along, opacities[i] * Math.exp(-0.5 * off)]);
    }
    hits.sort((a, b) => a[0] - b[0]);
    let left = 1;
    for (const [along, alpha] of hits) {
      left *= 1 - alpha;
      if (left < 0.5) return add(eye, ray, along);
    }
    return null;
  }

  /** Indices of the shown splats whose centres lie within `radius` CSS pixels of a place of the canvas. */
  splatsAt(x, y, radius) {
    const { means } = this.table, m = invert(this._pose.c2w), found = [];
    const focal = this.canvas.clientHeight / (2 * Math.tan(this._pose.fov / 2));
    const left = x - this.canvas.clientWidth / 2, top = y - this.canvas.clientHeight / 2;
    for (let i = 0; i < this.count; i++) {
      if (this.hidden?.[i]) continue;
      const p = [means[3 * i], means[3 * i + 1], means[3 * i + 2]];
      const [u, v, z] = [0, 1, 2].map((r) => m[4 * r] * p[0] + m[4 * r + 1] * p[1] + m[4 * r + 2] * p[2] + m[4 * r + 3]);
      if (z > this.near && Math.hypot((focal * u) / z - left, (focal * v) / z - top) <= radius) found.push(i);
    }
    return found;
  }

  /**
   * A view at any size, exactly ordered: RGBA bytes, first row on top. For screenshots, films and measurements.
   *
   * @param {{c2w, fov}|{c2w, fx, fy, cx, cy}} camera a pose, or intrinsics in pixels of this size
   */
  renderPixels(camera, width, height, background = this.background) {
    const K = "fx" in camera ? camera : intrinsics(camera.fov, width, height);
    this.renderer.setOrder(this.order.now(this._plane(camera.c2w), this.near));
    const bytes = this.renderer.pixels(camera.c2w, K, [width, height], { near: this.near, background });
    this._arrange();
    this.invalidate();
    return bytes;
  }

  /** What the canvas shows as a picture file, at another size if asked. */
  async screenshot({ width = this.canvas.width, height = this.canvas.height, type = "image/png" } = {}) {
    const sheet = new OffscreenCanvas(width, height);
    sheet.getContext("2d").putImageData(new ImageData(this.renderPixels(this._pose, width, height), width, height), 0, 0);
    return sheet.convertToBlob({ type, quality: 0.95 });
  }

  /** Draws with the next frame of the screen. */
  invalidate() {
    if (this._waiting) return;
    this._waiting = requestAnimationFrame((now) => {
      this._waiting = 0;
      this._tick(now);
    });
  }

  dispose() {
    cancelAnimationFrame(this._waiting);
    this._resize.disconnect();
    this.controls.dispose();
    this.order.dispose();
    this.renderer.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }

  _tick(now) {
    const seconds = Math.min(0.1, (now - (this._lastTick ?? now)) / 1000);
    this._lastTick = now;
    const flying = this.controls.step(seconds || 0.016, false);
    if (this.playing) this._advance(now);
    if (this._glide) this._slide(now);
    const moving = flying || this.playing || Boolean(this._glide) || performance.now() - this._moved < STILL_MS;
    this._adapt(moving, 1000 * seconds);
    this._sort();
    this._draw();
    if (moving) this.invalidate();
    else this._lastTick = undefined;
  }

  /** Asks for the order of a view that is new; its coming draws once more, and a view that stands costs nothing. */
  _sort() {
    const plane = this._plane(this._pose.c2w), asked = plane.join();
    if (!this.table || asked === this._asked) return;
    this._asked = asked;
    this.order.request(plane, this.near);
  }

  _advance(now) {
    this.seek(this._time + (this._rate * (now - this._last)) / 1000);
    this._last = now;
    if (this._time >= this.duration) this.stop();
  }

  _slide(now) {
    const { from, to, start } = this._glide, t = Math.min(1, (now - start) / 500), eased = t * t * (3 - 2 * t);
    const keep = this._glide;
    this.setPose(between(from, to, eased));
    this._glide = t < 1 ? keep : null;
  }

  /** Coarser pictures while the view moves and the machine is slow; sharp ones as soon as it stands. */
  _adapt(moving, milliseconds) {
    if (!moving) this._scale = 1;
    else {
      if (milliseconds > SLOW_MS) this._quality = Math.max(COARSEST, this._quality * 0.8);
      else if (milliseconds > 0 && milliseconds < FAST_MS) this._quality = Math.min(1, this._quality * 1.05);
      this._scale = Math.round(4 * this._quality) / 4 || COARSEST;
    }
  }

  _draw() {
    const scale = this._scale ?? 1, { c2w, fov } = this._pose;
    const size = [this.canvas.width, this.canvas.height].map((v) => Math.max(1, Math.round(scale * v)));
    this.renderer.draw(c2w, intrinsics(fov, ...size), size, { near: this.near, background: this.background });
    this._tell("frame", { scale });
  }

  _ordered(order) {
    this.renderer.setOrder(order);
    this.invalidate();
  }

  /** Orders for the present view at once. */
  _arrange() {
    if (this.table) this.renderer.setOrder(this.order.now(this._plane(this._pose.c2w), this.near));
  }

  _plane(c2w) {
    return invert(c2w).slice(8, 12);
  }

  _fit() {
    const { clientWidth: w, clientHeight: h } = this.canvas, ratio = this._pixelRatio;
    const [width, height] = [w, h].map((v) => Math.max(1, Math.round(v * ratio)));
    if (width === this.canvas.width && height === this.canvas.height) return;
    Object.assign(this.canvas, { width, height });
    this.invalidate();
  }

  /** Unit of length (median distance from the first camera), nearest plane, and the extent of most splats. */
  _measure() {
    const { means } = this.table, eye = this.cameras.length ? axis(this.cameras[0].c2w, 3) : null;
    const step = Math.max(1, Math.floor(this.count / 20000)), sample = [];
    for (let i = 0; i < this.count; i += step) sample.push([means[3 * i], means[3 * i + 1], means[3 * i + 2]]);
    const middle = (values, share = 0.5) => values.sort((a, b) => a - b)[Math.floor(share * (values.length - 1))] ?? 0;
    const centre = [0, 1, 2].map((k) => middle(sample.map((p) => p[k])));
    const radius = middle(sample.map((p) => length(add(p, centre, -1))), 0.9) || 1;
    this._extent = { centre, radius };
    this.unit = eye ? middle(sample.map((p) => length(add(p, eye, -1)))) || 1 : radius;
    if (!this.near) this.near = 0.01 * this.unit;
  }

  /** What a camera looks at: a point ahead at the median distance of the splats in the middle of its picture. */
  _pivotOf(c2w) {
    const { means } = this.table ?? { means: [] }, m = invert(c2w), ahead = [];
    const step = 3 * Math.max(1, Math.floor(this.count / 50000));
    for (let i = 0; i < means.length; i += step) {
      const [u, v, z] = [0, 1, 2].map((r) => m[4 * r] * means[i] + m[4 * r + 1] * means[i + 1] + m[4 * r + 2] * means[i + 2] + m[4 * r + 3]);
      if (z > this.near && Math.hypot(u, v) < 0.2 * z) ahead.push(z);
    }
    ahead.sort((a, b) => a - b);
    return add(axis(c2w, 3), axis(c2w, 2), ahead[ahead.length >> 1] ?? this.unit);
  }

  _tell(event, value) {
    for (const callback of this._listeners[event]) callback(value, this);
  }
}

/** Square pixels, the axis in the middle. */
export function intrinsics(fov, width, height) {
  const focal = height / (2 * Math.tan(fov / 2));
  return { fx: focal, fy: focal, cx: width / 2, cy: height / 2 };
}
