// Help for visitors who have lost the world, and gamepads.

import { invert } from "../pose.js";
import { $ } from "./page.js";

const LOOK_MS = 400;
// Fewer of the sampled splats than this in the picture: there is nothing to see here.
const LEAST_SHARE = 0.02;
const DEAD_ZONE = 0.15;

/** Offers the way home when hardly anything is in the picture. */
export class LostWatch {
  constructor(viewer) {
    this.viewer = viewer;
    viewer.on("pose", () => {
      this._waiting ??= setTimeout(() => {
        this._waiting = undefined;
        $("lost").hidden = this.share() >= LEAST_SHARE;
      }, LOOK_MS);
    });
  }

  /** Share of the splats that are in the picture. */
  share() {
    const { viewer } = this, { means } = viewer.table, { c2w, fov } = viewer.pose, m = invert(c2w);
    const tall = Math.tan(fov / 2), wide = tall * viewer.aspect, step = 3 * Math.max(1, Math.floor(viewer.count / 5000));
    let seen = 0, all = 0;
    for (let i = 0; i < means.length; i += step) {
      const [x, y, z] = [0, 1, 2].map((r) => m[4 * r] * means[i] + m[4 * r + 1] * means[i + 1] + m[4 * r + 2] * means[i + 2] + m[4 * r + 3]);
      all++;
      if (z > viewer.near && Math.abs(x) < wide * z && Math.abs(y) < tall * z) seen++;
    }
    return all ? seen / all : 1;
  }
}

/** Left stick flies, right stick looks around, triggers go down and up, the first button goes home. */
export class Gamepads {
  constructor(viewer) {
    this.viewer = viewer;
    addEventListener("gamepadconnected", () => this.begin());
  }

  begin() {
    if (this._running) return;
    this._running = true;
    let last = performance.now();
    const tick = (now) => {
      const pads = [...navigator.getGamepads()].filter(Boolean), seconds = Math.min(0.1, (now - last) / 1000);
      last = now;
      for (const pad of pads) this.move(pad, seconds);
      this._running = pads.length > 0;
      if (this._running) requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  move({ axes, buttons }, seconds) {
    const { viewer } = this, firm = (v) => (Math.abs(v) < DEAD_ZONE ? 0 : v ?? 0);
    const [x, y, u, v] = [0, 1, 2, 3].map((i) => firm(axes[i])), rise = (buttons[6]?.value ?? 0) - (buttons[7]?.value ?? 0);
    const step = 0.5 * viewer.unit * viewer.controls.speed * seconds;
    if (x || y || rise) viewer.controls.fly([x * step, rise * step, -y * step]);
    if (u || v) viewer.controls.look(900 * u * seconds, 900 * v * seconds);
    if (buttons[0]?.pressed) viewer.home();
  }
}
