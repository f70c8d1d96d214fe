// The clip's own frame over the world, cut at a line that can be moved: what the video showed, and what the world shows.

import { $, announce } from "./page.js";

export class Compare {
  constructor(viewer, description) {
    Object.assign(this, { viewer, description });
    this.on = false;
    this.standing = true; // the camera is a frame's own
    this.frame = 0;
    this.image = $("still").querySelector("img");
    viewer.on("pose", () => this.moved());
    $("wipe-at").addEventListener("input", () => this.cut());
    addEventListener("resize", () => requestAnimationFrame(() => this.place()));
  }

  /** The first frame, until the splats are there. */
  poster() {
    if (!this.description.frames) return;
    this.showFrame(0);
    $("still").hidden = false;
    this.image.style.clipPath = "";
  }

  dismiss() {
    $("still").hidden = true;
  }

  toggle() {
    if (!this.description.frames) return;
    this.on = !this.on;
    $("do-compare").ariaPressed = String(this.on);
    if (this.on && !this.standing) globalThis.app.timeline.go(globalThis.app.timeline.viewer.time);
    this.draw();
    announce(this.on ? "The clip is shown left of the line, the world right of it" : "The world alone is shown");
  }

  /** Lets the timeline move the camera to a frame; -1 if the path is not the clip's. */
  moving(move, frame) {
    this._own = true;
    move();
    this._own = false;
    this.standing = frame >= 0;
    if (frame >= 0) this.frame = frame;
    this.draw();
  }

  moved() {
    if (this._own) return;
    const { timeline } = globalThis.app ?? {};
    const playing = this.viewer.playing && timeline?.alongClip;
    if (playing) this.frame = timeline.frame;
    if (this.standing !== playing || playing) {
      this.standing = playing;
      this.draw();
    }
  }

  draw() {
    const shown = this.on && this.standing;
    $("still").hidden = $("wipe").hidden = !shown;
    if (!shown) return;
    this.showFrame(this.frame);
    this.cut();
  }

  showFrame(position) {
    const address = `frames/${this.description.cameras[position].frame}`;
    if (this.image.getAttribute("src") !== address) this.image.setAttribute("src", address);
    this.place(position);
  }

  /** Puts the frame where the world shows the same. */
  place(position = this.frame) {
    const camera = this.description.cameras[position], { clientWidth: w, clientHeight: h } = this.viewer.canvas;
    const focal = h / (2 * Math.tan(this.viewer.pose.fov / 2));
    const x = focal / camera.fx, y = focal / camera.fy, style = $("still").style;
    style.left = `${w / 2 - camera.cx * x}px`;
    style.top = `${h / 2 - camera.cy * y}px`;
    style.width = `${camera.width * x}px`;
    style.height = `${camera.height * y}px`;
    this._left = w / 2 - camera.cx * x;
    this._width = camera.width * x;
    if (this.on) this.cut();
  }

  cut() {
    // The thumb is 40 px wide and stays inside.
    const width = this.viewer.canvas.clientWidth, line = 20 + (Number($("wipe-at").value) / 100) * (width - 40), at = line - this._left;
    $("line").style.left = `${line}px`;
    const share = Math.max(0, Math.min(1, at / this._width));
    this.image.style.clipPath = `inset(0 ${100 - 100 * share}% 0 0)`;
  }
}
