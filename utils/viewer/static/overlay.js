// Lines over the picture: the clip's cameras, and the crop box.

import { invert } from "../pose.js";

export class Overlay {
  constructor(viewer, description) {
    Object.assign(this, { viewer, description });
    this.canvas = document.getElementById("overlay");
    this.cameras = false;
    this.box = null;
    viewer.on("frame", () => this.draw());
  }

  showCameras(on) {
    this.cameras = on;
    this.draw();
  }

  /** Shows a box of eight corners, or none. */
  showBox(corners) {
    this.box = corners;
    this.draw();
  }

  draw() {
    if (!this.cameras && !this.box && !this._dirty) return;
    const { clientWidth: w, clientHeight: h } = this.viewer.canvas, ratio = Math.min(devicePixelRatio || 1, 2);
    if (this.canvas.width !== Math.round(w * ratio) || this.canvas.height !== Math.round(h * ratio)) {
      Object.assign(this.canvas, { width: Math.round(w * ratio), height: Math.round(h * ratio) });
    }
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, w, h);
    this._dirty = false;
    const { c2w, fov } = this.viewer.pose, m = invert(c2w), focal = h / (2 * Math.tan(fov / 2));
    this._project = (p) => [0, 1, 2].map((r) => m[4 * r] * p[0] + m[4 * r + 1] * p[1] + m[4 * r + 2] * p[2] + m[4 * r + 3]);
    this._pen = pen;
    this._screen = (q) => [w / 2 + (focal * q[0]) / q[2], h / 2 + (focal * q[1]) / q[2]];
    if (this.cameras) this._drawCameras();
    if (this.box) this._drawBox();
  }

  _drawCameras() {
    const size = (this.description.camera_size || 0.06) * this.viewer.unit;
    for (const { c2w, fx, fy, cx, cy, width, height, heldout } of this.description.cameras) {
      const at = (x, y, z) => [0, 1, 2].map((r) => c2w[4 * r] * x + c2w[4 * r + 1] * y + c2w[4 * r + 2] * z + c2w[4 * r + 3]);
      const corner = (u, v) => at(((u - cx) / fx) * size, ((v - cy) / fy) * size, size);
      const eye = at(0, 0, 0), frame = [corner(0, 0), corner(width, 0), corner(width, height), corner(0, height)];
      // Cameras next to the visitor would cover the view.
      if (Math.hypot(...this._project(eye)) < 3 * size) continue;
      const colour = heldout ? "#f0a04b" : "#8fc0ff";
      frame.forEach((p, i) => {
        this._line(eye, p, colour);
        this._line(p, frame[(i + 1) % 4], colour);
      });
    }
  }

  _drawBox() {
    for (let i = 0; i < 8; i++) {
      for (const bit of [1, 2, 4]) if (!(i & bit)) this._line(this.box[i], this.box[i | bit], "#ffffff");
    }
  }

  /** A line in space, cut at the near plane. */
  _line(from, to, colour) {
    let a = this._project(from), b = this._project(to);
    const near = this.viewer.near || 1e-3;
    if (a[2] < near && b[2] < near) return;
    if (a[2] < near) a = cut(b, a, near);
    if (b[2] < near) b = cut(a, b, near);
    this._dirty = true;
    const pen = this._pen;
    for (const [style, width] of [["#000a", 3.5], [colour, 1.5]]) {
      pen.strokeStyle = style;
      pen.lineWidth = width;
      pen.beginPath();
      pen.moveTo(...this._screen(a));
      pen.lineTo(...this._screen(b));
      pen.stroke();
    }
  }
}

function cut(inside, outside, near) {
  const t = (inside[2] - near) / (inside[2] - outside[2]);
  return inside.map((v, i) => v + t * (outside[i] - v));
}
