// Mouse, touch and keyboard: orbit around a pivot, pan, zoom, fly. Changes the camera through `viewer.pose` and `viewer.pivot`.

import { add, axis, dot, length, turnAbout, unit } from "./pose.js";

const KEYS = {
  KeyW: [0, 0, 1], KeyS: [0, 0, -1], KeyA: [-1, 0, 0], KeyD: [1, 0, 0], KeyQ: [0, 1, 0], KeyE: [0, -1, 0],
  ArrowUp: [0, 0, 1], ArrowDown: [0, 0, -1], ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0],
};
// Closest that the view may come to straight up or down, as a cosine.
const STEEPEST = 0.985;

export class Controls {
  constructor(viewer, canvas) {
    this.viewer = viewer;
    this.canvas = canvas;
    this.enabled = true;
    this.speed = 1;
    this._pointers = new Map();
    this._keys = new Set();
    this._off = new AbortController();
    canvas.style.touchAction = "none";
    if (!canvas.hasAttribute("tabindex")) canvas.tabIndex = 0;
    const on = (target, name, act, more) => target.addEventListener(name, act, { signal: this._off.signal, ...more });
    on(canvas, "pointerdown", (e) => this._down(e));
    on(canvas, "pointermove", (e) => this._move(e));
    for (const name of ["pointerup", "pointercancel"]) on(canvas, name, (e) => this._pointers.delete(e.pointerId));
    on(canvas, "wheel", (e) => this._wheel(e), { passive: false });
    on(canvas, "contextmenu", (e) => e.preventDefault());
    on(canvas, "dblclick", (e) => this.enabled && viewer.focusAt(...this._place(e)));
    on(canvas, "keydown", (e) => this._key(e));
    on(canvas, "keyup", (e) => this._keys.delete(e.code));
    on(canvas, "blur", () => this._keys.clear());
  }

  dispose() {
    this._off.abort();
  }

  _place(e) {
    const box = this.canvas.getBoundingClientRect();
    return [e.clientX - box.left, e.clientY - box.top];
  }

  _down(e) {
    if (!this.enabled) return;
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(e.pointerId);
    this._pointers.set(e.pointerId, [e.clientX, e.clientY]);
    this.viewer.stop();
  }

  _move(e) {
    const before = this._pointers.get(e.pointerId);
    if (!before || !this.enabled) return;
    const here = [e.clientX, e.clientY], by = [here[0] - before[0], here[1] - before[1]];
    if (this._pointers.size === 1) {
      this._pointers.set(e.pointerId, here);
      if (e.buttons & 2 || e.shiftKey) this.pan(...by);
      else if (e.buttons & 4 || e.altKey) this.look(...by);
      else this.orbit(...by);
      return;
    }
    const other = [...this._pointers].find(([id]) => id !== e.pointerId)[1];
    const gap = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
    this.zoom(gap(before) / Math.max(gap(here), 1));
    this.pan(by[0] / 2, by[1] / 2);
    this._pointers.set(e.pointerId, here);
  }

  _wheel(e) {
    if (!this.enabled) return;
    e.preventDefault();
    this.viewer.stop();
    const lines = e.deltaMode === 1 ? 16 : 1;
    this.zoom(Math.exp(Math.max(-1, Math.min(1, 0.0015 * lines * e.deltaY))));
  }

  _key(e) {
    if (!this.enabled || e.ctrlKey || e.metaKey) return;
    if (KEYS[e.code]) {
      this._keys.add(e.code);
      this.viewer.stop();
      this.viewer.invalidate();
    } else if (e.code === "KeyR" || e.code === "Home") this.viewer.home();
    else if (e.code === "KeyF") this.viewer.frameAll();
    else if (e.code === "Space") this.viewer.playing ? this.viewer.stop() : this.viewer.play();
    else return;
    e.preventDefault();
  }

  /** Flies by the keys that are down; true while any is. */
  step(seconds, fast) {
    if (!this._keys.size) return false;
    const to = [0, 0, 0];
    for (const code of this._keys) KEYS[code].forEach((v, i) => { to[i] += v; });
    this.fly(to.map((v) => v * seconds * 0.35 * this.viewer.unit * this.speed * (fast ? 3 : 1)));
    return true;
  }

  /** Around the pivot, by pixels of the pointer. */
  orbit(dx, dy) {
    this._turn(dx, dy, this.viewer.pivot, 1);
  }

  /** On the spot, by pixels of the pointer. */
  look(dx, dy) {
    const { c2w } = this.viewer.pose, eye = axis(c2w, 3), distance = length(add(this.viewer.pivot, eye, -1));
    this._turn(dx, dy, eye, 0.5);
    this.viewer.pivot = add(eye, axis(this.viewer.pose.c2w, 2), distance);
  }

  _turn(dx, dy, centre, share) {
    const viewer = this.viewer, step = (share * Math.PI) / Math.max(this.canvas.clientHeight, 1);
    let c2w = turnAbout(viewer.pose.c2w, centre, viewer.up, -dx * step);
    const tilted = turnAbout(c2w, centre, unit(axis(c2w, 0)), -dy * step);
    const steep = Math.abs(dot(axis(tilted, 2), viewer.up));
    if (steep < STEEPEST || steep < Math.abs(dot(axis(c2w, 2), viewer.up))) c2w = tilted;
    viewer.setPose({ c2w, fov: viewer.pose.fov });
  }

  /** Sideways, so that the pivot follows the pointer. */
  pan(dx, dy) {
    const { c2w, fov } = this.viewer.pose;
    const distance = length(add(this.viewer.pivot, axis(c2w, 3), -1));
    const step = (2 * Math.tan(fov / 2) * distance) / Math.max(this.canvas.clientHeight, 1);
    this.fly([-dx * step, -dy * step, 0]);
  }

  /** Towards the pivot (factor < 1) or away; near the pivot the pivot is pushed ahead, so that one never gets stuck. */
  zoom(factor) {
    const viewer = this.viewer, { c2w, fov } = viewer.pose;
    const eye = axis(c2w, 3), to = add(viewer.pivot, eye, -1), least = 0.05 * viewer.unit;
    const step = (1 - factor) * Math.max(length(to), least);
    const direction = unit(to), place = add(eye, direction, step);
    if (length(to) - step < least) viewer.pivot = add(place, direction, least);
    const moved = [...c2w];
    place.forEach((v, i) => { moved[4 * i + 3] = v; });
    viewer.setPose({ c2w: moved, fov });
  }

  /** By a vector in camera axes (right, down, forward); the pivot comes along. */
  fly(by) {
    const viewer = this.viewer, { c2w, fov } = viewer.pose;
    let shift = [0, 0, 0];
    by.forEach((v, i) => { shift = add(shift, axis(c2w, i), v); });
    const moved = [...c2w];
    shift.forEach((v, i) => { moved[4 * i + 3] += v; });
    viewer.pivot = add(viewer.pivot, shift);
    viewer.setPose({ c2w: moved, fov });
  }
}
