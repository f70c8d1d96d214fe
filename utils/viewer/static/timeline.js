// The timeline: the clip's own cameras at the clip's speed, the fly-through, and the visitor's own views.

import { between, poseOf } from "../pose.js";
import { $, announce, storage, toast } from "./page.js";

const SECONDS_PER_VIEW = 2;
const POSES_PER_VIEW = 30;

export class Timeline {
  constructor(viewer, description, compare) {
    Object.assign(this, { viewer, description, compare });
    this.views = storage.get("views") ?? [];
    this.fill();
    $("path").addEventListener("change", () => this.choose($("path").value));
    $("time").addEventListener("input", () => this.go(Number($("time").value)));
    $("time").addEventListener("keydown", (event) => this.key(event));
    $("play").addEventListener("click", () => this.toggle());
    $("rate").addEventListener("change", () => viewer.playing && viewer.play(this.rate));
    $("add-view").addEventListener("click", () => this.keep());
    viewer.on("play", () => this.draw());
    viewer.on("frame", () => this.draw());
    this.aspect = viewer.aspect;
    addEventListener("resize", () => this.fit());
    this.choose("clip", false);
  }

  get rate() {
    return Number($("rate").value);
  }

  /** Whether the path is the clip's, or one clip's of several ("clip2" is the second). */
  get alongClip() {
    return this.chosen.startsWith("clip");
  }

  /** Positions of the cameras of "clip", which is all, or of one clip. */
  rowsOf(which) {
    const all = [...this.description.cameras.keys()], number = Number(which.slice(4));
    return number ? all.filter((i) => this.description.clips[i] === number - 1) : all;
  }

  /** The chosen frame of the clip under the slider, or -1 if another path is chosen. */
  get frame() {
    return this.alongClip ? this.frameAt(this.viewer.time) : -1;
  }

  fill() {
    const clips = [...new Set(this.description.clips)].filter((clip) => this.rowsOf(`clip${clip + 1}`).length > 1);
    const paths = [["clip", clips.length > 1 ? "All clips" : "Clip"]];
    if (clips.length > 1) paths.push(...clips.map((clip) => [`clip${clip + 1}`, `Clip ${clip + 1}`]));
    if (this.description.path) paths.push(["fly", "Fly-through"]);
    if (this.views.length) paths.push(["own", `My views (${this.views.length})`]);
    $("path").replaceChildren(...paths.map(([value, words]) => new Option(words, value, false, value === this.chosen)));
  }

  poses(which, aspect = this.viewer.aspect) {
    if (which === "fly") return this.description.path;
    if (which === "own") return { poses: eased(this.views), seconds: Math.max(SECONDS_PER_VIEW * (this.views.length - 1), 0.01) };
    const rows = this.rowsOf(which), { cameras, seconds } = this.description;
    return { poses: rows.map((i) => poseOf(cameras[i], aspect)), seconds: (seconds * (rows.length - 1)) / Math.max(1, cameras.length - 1) };
  }

  choose(which, move = true) {
    this.chosen = which;
    this.rows = this.alongClip ? this.rowsOf(which) : [];
    this.viewer.stop();
    this.viewer.path = this.poses(which);
    $("time").max = String(this.viewer.path.seconds);
    // Arrow keys go from frame to frame of the clip.
    this.frameSeconds = this.viewer.path.seconds / Math.max(1, (this.alongClip ? this.rows.length : 60) - 1);
    if (move) this.go(0);
    this.draw();
  }

  /** The clip's poses depend on the window's shape. */
  fit() {
    if (Math.abs(this.viewer.aspect - this.aspect) < 1e-3) return;
    this.aspect = this.viewer.aspect;
    if (this.alongClip) this.viewer.path = this.poses(this.chosen);
    if (this.atFrame()) this.go(this.viewer.time);
    this.compare.place();
  }

  /** Whether the camera stands where the timeline says. */
  atFrame() {
    return this.compare.standing;
  }

  go(seconds) {
    this.viewer.stop();
    this.compare.moving(() => this.viewer.seek(seconds), this.alongClip ? this.frameAt(seconds) : -1);
    this.draw();
  }

  frameAt(seconds) {
    return this.rows[Math.round((seconds / Math.max(this.viewer.duration, 1e-9)) * (this.rows.length - 1))];
  }

  step(by) {
    const at = this.alongClip ? this.rows.indexOf(this.frame) : Math.round(this.viewer.time / this.frameSeconds);
    this.go((at + by) * this.frameSeconds);
  }

  key(event) {
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
    if (!by) return;
    event.preventDefault();
    this.step(by);
  }

  toggle() {
    if (this.viewer.playing) this.viewer.stop();
    else this.viewer.play(this.rate);
  }

  /** Keeps the present view; two or more make a path. */
  keep() {
    this.views.push({ c2w: [...this.viewer.pose.c2w], fov: this.viewer.pose.fov });
    storage.set("views", this.views);
    this.fill();
    toast(this.views.length === 1 ? "View kept. Keep another, and they make a path." : `${this.views.length} views kept: choose My views to play them.`);
  }

  forget() {
    this.views = [];
    storage.set("views", this.views);
    if (this.chosen === "own") this.choose("clip");
    this.fill();
    announce("Your views are forgotten");
  }

  draw() {
    const { viewer } = this;
    if (document.activeElement !== $("time") || viewer.playing) $("time").value = String(viewer.time);
    const seconds = `${viewer.time.toFixed(1)} / ${viewer.duration.toFixed(1)} s`;
    const words = this.alongClip ? `frame ${this.rows.indexOf(this.frame) + 1} / ${this.rows.length}` : seconds;
    if ($("time-words").textContent !== words) {
      $("time-words").textContent = words;
      $("time").setAttribute("aria-valuetext", words.replace("/", "of"));
    }
    const playing = String(viewer.playing);
    if ($("play").dataset.playing !== playing) {
      $("play").dataset.playing = playing;
      $("play").ariaLabel = viewer.playing ? "Stop" : "Play";
      $("play").querySelector("path").setAttribute("d", viewer.playing ? "M6 4h4.500v16H6zM13.500 4H18v16h-4.500z" : "M7 4l13 8-13 8z");
    }
  }
}

/** Poses through the views with eased motion between them. */
export function eased(views) {
  const poses = views.slice(0, 1);
  for (let i = 1; i < views.length; i++) {
    for (let k = 1; k <= POSES_PER_VIEW; k++) {
      const t = k / POSES_PER_VIEW;
      poses.push(between(views[i - 1], views[i], 0.5 - 0.5 * Math.cos(Math.PI * t)));
    }
  }
  return poses;
}
