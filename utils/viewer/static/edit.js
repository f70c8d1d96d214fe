// Crop box and delete brush: what is left can be downloaded as a PLY.

import { add, axis, cross, dot, length, unit } from "../pose.js";
import { $, announce, save, toast } from "./page.js";

const SELECTED = [[0, 0, 0, 0], [1, 0.55, 0.1, 0.75]];
const SIDES = [["left", 0, 0], ["right", 0, 1], ["bottom", 1, 0], ["top", 1, 1], ["near", 2, 0], ["far", 2, 1]];
const STEPS = 200;
const MOST_UNDO = 30;
// Splats up to this many times farther than the surface under the brush count as that surface.
const SURFACE = 1.12;

export class Editor {
  constructor(viewer, description, overlay) {
    Object.assign(this, { viewer, description, overlay });
    this.tool = "look";
    this.deleted = null;
    this.selected = null;
    this.undos = [];
    for (const tool of ["look", "brush", "box"]) $(`tool-${tool}`).addEventListener("click", () => this.choose(tool));
    $("edit-delete").addEventListener("click", () => this.remove());
    $("edit-invert").addEventListener("click", () => this.invert());
    $("edit-undo").addEventListener("click", () => this.undo());
    $("edit-save").addEventListener("click", () => this.download());
    $("brush-size").addEventListener("input", () => this.words());
    this.buildBox();
    const { canvas } = viewer;
    canvas.addEventListener("pointermove", (event) => this.hover(event));
    canvas.addEventListener("pointerdown", (event) => this.tool === "brush" && event.button === 0 && this.paint(event));
    canvas.addEventListener("pointerleave", () => { $("brush").hidden = true; });
    canvas.addEventListener("pointerup", () => { this._surface = null; });
  }

  begin() {
    if (this.deleted?.length === this.viewer.count) return;
    this.deleted = new Uint8Array(this.viewer.count);
    this.selected = new Uint8Array(this.viewer.count);
    this.measure();
  }

  choose(tool) {
    this.begin();
    this.tool = tool;
    for (const other of ["look", "brush", "box"]) $(`tool-${other}`).ariaPressed = String(other === tool);
    $("brush-options").hidden = tool !== "brush";
    $("box-options").hidden = tool !== "box";
    this.viewer.controls.enabled = tool !== "brush";
    $("brush").hidden = true;
    if (tool === "box") this.selectOutside();
    else this.overlay.showBox(null);
    this.words();
  }

  /** The panel is closed: the view is for looking again; what was deleted stays deleted. */
  rest() {
    if (this.tool === "look") return;
    this.choose("look");
    this.clear();
  }

  close() {
    this.rest();
    $("edit").hidden = true;
    $("do-edit").ariaExpanded = "false";
  }

  // ---------------------------------------------------------------------------------------------- brush

  hover(event) {
    if (this.tool !== "brush") return;
    const box = this.viewer.canvas.getBoundingClientRect(), radius = Number($("brush-size").value), style = $("brush").style;
    $("brush").hidden = event.pointerType === "touch";
    style.left = `${event.clientX - box.left}px`;
    style.top = `${event.clientY - box.top}px`;
    style.width = style.height = `${2 * radius}px`;
    if (event.buttons & 1) this.paint(event);
  }

  paint(event) {
    const box = this.viewer.canvas.getBoundingClientRect(), place = [event.clientX - box.left, event.clientY - box.top];
    let found = this.viewer.splatsAt(...place, Number($("brush-size").value));
    if ($("brush-surface").checked) {
      const eye = axis(this.viewer.pose.c2w, 3), point = this.viewer.pick(...place);
      const most = point ? SURFACE * length(add(point, eye, -1)) : 0, { means } = this.viewer.table;
      found = found.filter((i) => Math.hypot(means[3 * i] - eye[0], means[3 * i + 1] - eye[1], means[3 * i + 2] - eye[2]) <= most);
    }
    for (const i of found) this.selected[i] = 1;
    this.show();
  }

  // ---------------------------------------------------------------------------------------------- box

  buildBox() {
    this.limits = [[0, STEPS], [0, STEPS], [0, STEPS]];
    for (const [name, k, end] of SIDES) {
      const input = Object.assign(document.createElement("input"), { type: "range", min: "0", max: String(STEPS), value: String(end * STEPS), id: `box-${name}` });
      input.addEventListener("input", () => {
        this.limits[k][end] = Number(input.value);
        this.selectOutside();
      });
      const label = Object.assign(document.createElement("label"), { className: "slide", textContent: name });
      label.append(input);
      $("box-options").append(label);
    }
  }

  /** Upright axes as the first camera sees them, and the extent of the splats along each. */
  measure() {
    const { means } = this.viewer.table, up = this.viewer.up, c2w = this.viewer.cameras[0]?.c2w ?? this.viewer.pose.c2w;
    const ahead = axis(c2w, 2), level = unit(add(ahead, up, -dot(ahead, up)));
    this.axes = [unit(cross(level, up)), up, level];
    this.extent = this.axes.map((a) => {
      const sample = [], step = 3 * Math.max(1, Math.floor(this.viewer.count / 40000));
      for (let i = 0; i < means.length; i += step) sample.push(a[0] * means[i] + a[1] * means[i + 1] + a[2] * means[i + 2]);
      sample.sort((p, q) => p - q);
      const [low, high] = [0.002, 0.998].map((share) => sample[Math.floor(share * (sample.length - 1))]);
      return [low - 0.02 * (high - low), high + 0.02 * (high - low)];
    });
  }

  bounds() {
    // A slider at its end leaves that side open.
    return this.extent.map(([low, high], k) => this.limits[k].map((at) => low + ((high - low) * at) / STEPS));
  }

  selectOutside() {
    this.begin();
    const { means } = this.viewer.table, bounds = this.bounds();
    for (let i = 0; i < this.viewer.count; i++) {
      let out = 0;
      this.axes.forEach((a, k) => {
        const at = a[0] * means[3 * i] + a[1] * means[3 * i + 1] + a[2] * means[3 * i + 2], [from, to] = this.limits[k];
        if ((from > 0 && at < bounds[k][0]) || (to < STEPS && at > bounds[k][1])) out = 1;
      });
      this.selected[i] = out;
    }
    const corners = Array.from({ length: 8 }, (_, i) => this.axes.reduce((p, a, k) => add(p, a, bounds[k][(i >> k) & 1]), [0, 0, 0]));
    this.overlay.showBox(corners);
    this.show();
  }

  // ---------------------------------------------------------------------------------------------- changes

  remove() {
    if (!this.selected || $("edit").hidden) return;
    this.undos = [...this.undos, this.deleted.slice()].slice(-MOST_UNDO);
    let count = 0;
    this.selected.forEach((on, i) => {
      if (on && !this.deleted[i]) {
        this.deleted[i] = 1;
        count++;
      }
    });
    this.clear();
    this.apply();
    announce(`${count} splats deleted`);
  }

  undo() {
    const before = this.undos.pop();
    if (!before) return;
    this.deleted = before;
    this.apply();
    this.words();
  }

  invert() {
    this.begin();
    this.selected = this.selected.map((on, i) => (on || this.deleted[i] ? 0 : 1));
    this.show();
  }

  clear() {
    this.selected?.fill(0);
    this.show();
  }

  /** Hides what was deleted. */
  apply() {
    if (this.deleted?.length === this.viewer.count) this.viewer.setHidden(this.deleted.some(Boolean) ? this.deleted : null);
  }

  show() {
    if (!this.selected) return;
    const any = this.selected.some((on, i) => on && !this.deleted[i]);
    this.viewer.setTint(any ? this.selected : null, SELECTED);
    this.words();
  }

  words() {
    $("brush-words").textContent = `${$("brush-size").value} px`;
    if (!this.selected) return;
    let marked = 0, gone = 0;
    for (let i = 0; i < this.deleted.length; i++) {
      gone += this.deleted[i];
      marked += this.selected[i] && !this.deleted[i] ? 1 : 0;
    }
    const number = (n) => n.toLocaleString("en");
    $("edit-words").textContent = `${number(marked)} selected, ${number(gone)} of ${number(this.deleted.length)} deleted.`;
    $("edit-delete").disabled = !marked;
    $("edit-undo").disabled = !this.undos.length;
  }

  /** The exact PLY without the rows of the deleted splats. */
  async download() {
    this.begin();
    try {
      const answer = await fetch("world.ply");
      if (!answer.ok) throw new Error((await answer.json()).error);
      save(new Blob(keptRows(new Uint8Array(await answer.arrayBuffer()), this.deleted)), `${this.description.name.replace(/\.[^.]+$/, "")}_edited.ply`);
      announce("The file is saved");
    } catch (error) {
      toast(`This cannot be saved: ${error.message}`);
    }
  }
}

/** Parts of a binary PLY that keep the rows with a zero in `deleted`. */
export function keptRows(bytes, deleted) {
  const text = new TextDecoder("latin1").decode(bytes.subarray(0, 65536)), end = text.indexOf("end_header\n") + 11;
  const count = Number(/element vertex (\d+)/.exec(text)[1]), row = (bytes.length - end) / count;
  if (count !== deleted.length || !Number.isInteger(row)) throw new Error("the PLY does not belong to what is shown; reload the page");
  const kept = deleted.reduce((sum, gone) => sum - (gone ? 1 : 0), count);
  const parts = [new TextEncoder().encode(text.slice(0, end).replace(/element vertex \d+/, `element vertex ${kept}`))];
  for (let i = 0; i < count;) {
    let to = i;
    while (to < count && !deleted[to]) to++;
    if (to > i) parts.push(bytes.subarray(end + i * row, end + to * row));
    i = to + 1;
  }
  return parts;
}
