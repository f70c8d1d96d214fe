// The viewer's page: loads what the server describes, and ties buttons, keys and the timeline to the viewer on the canvas.

import { createViewer } from "../viewer.js";
import { poseOf } from "../pose.js";
import { canFilm, film } from "./film.js";
import { Compare } from "./compare.js";
import { Editor } from "./edit.js";
import { Overlay } from "./overlay.js";
import { $, announce, reach, save, storage, toast } from "./page.js";
import { Gamepads, LostWatch } from "./navigation.js";
import { Timeline } from "./timeline.js";
import { coverage, COVERAGE_PALETTE } from "./coverage.js";

const FOLLOW_MS = 3000;
const touch = matchMedia("(pointer: coarse)").matches;

class App {
  constructor(description) {
    this.description = description;
    this.files = new Map();
    this.showing = "world";
  }

  /** Shows a first picture as soon as there is one: the clip's own first frame, then the splats. */
  async start() {
    const { description } = this;
    document.title = `${description.name}: 3D viewer`;
    this.describe();
    this.viewer = await createViewer($("canvas"), { cameras: description.cameras, up: description.up, path: null });
    this.viewer.setPose(poseOf(description.cameras[0], this.viewer.aspect));
    this.compare = new Compare(this.viewer, description);
    this.compare.poster();
    await this.viewer.load(await fetched(description.file, description.bytes), { keepView: false });
    if (description.near) this.viewer.near = description.near * this.viewer.unit;
    this.viewer.home(false);
    $("loading").hidden = true;
    this.compare.dismiss();
    document.documentElement.dataset.ready = "1";
    this.timeline = new Timeline(this.viewer, description, this.compare);
    this.overlay = new Overlay(this.viewer, description);
    this.editor = new Editor(this.viewer, description, this.overlay);
    this.lost = new LostWatch(this.viewer);
    this.gamepads = new Gamepads(this.viewer);
    this.wire();
    this.hint();
    $("canvas").focus({ preventScroll: true });
    if (description.unfinished) setTimeout(() => this.follow(), FOLLOW_MS);
  }

  describe() {
    const { splats, unfinished, verdict } = this.description;
    $("facts").classList.toggle("live", Boolean(unfinished));
    $("facts").textContent = unfinished ? "training, follows live" : `${verdict ? `${verdict}, ` : ""}${splats.toLocaleString("en")} splats`;
    if (this.description.back) reach($("back"), this.description.back);
  }

  hint() {
    const words = touch ? "One finger orbits, two move and zoom, double tap goes there"
      : "Drag to orbit, wheel to zoom, W A S D to fly, double click to go there, R for home";
    $("hint").textContent = words;
    const off = () => setTimeout(() => $("hint").classList.add("off"), 2500);
    $("tools").addEventListener("click", () => $("hint").classList.add("off")); // panels and labels need the room
    for (const name of ["pointerdown", "wheel", "keydown"]) $("canvas").addEventListener(name, off, { once: true, passive: true });
  }

  /** Shows newer splats of a training that goes on, from where the visitor stands. */
  async follow() {
    try {
      const fresh = await (await fetch("view.json")).json();
      if (fresh.version && fresh.version !== this.description.version) {
        Object.assign(this.description, fresh);
        this.files.delete("world");
        if (this.showing === "world") await this.viewer.load(await fetched(fresh.file, fresh.bytes, true));
        this.describe();
        announce(fresh.unfinished ? "Newer splats are shown" : "The training is done");
      }
    } catch (error) {
      console.warn(error);
    }
    if (this.description.unfinished) setTimeout(() => this.follow(), FOLLOW_MS);
  }

  /** Splats of the world, or points of the clip's frames before or after alignment. */
  async show(what) {
    if (what === this.showing) return;
    this.editor.close();
    this.showing = what;
    const radio = document.querySelector(`[name=show][value=${what}]`);
    radio.checked = true;
    try {
      if (!this.files.has(what)) this.files.set(what, await fetched(what === "world" ? this.description.file : `clouds/${what}`));
      if (what !== this.showing) return;
      this.viewer.setHidden(null);
      this.viewer.setTint(null);
      await this.viewer.load(this.files.get(what), { keepView: true });
      if (what === "world") this.editor.apply();
      this.tint();
      announce(`Shown: ${radio.parentElement.textContent.trim()}`);
    } catch (error) {
      toast(`This cannot be shown: ${error.message}`);
    }
  }

  tint() {
    const on = $("show-coverage").checked;
    $("legend").hidden = !on;
    this.viewer.setTint(on ? coverage(this.viewer.table, this.description.cameras) : null, COVERAGE_PALETTE);
  }

  /** Width and height of saved pictures and films. */
  get size() {
    return ($("shot-size").value || `${$("canvas").width}x${$("canvas").height}`).split("x").map(Number);
  }

  get fileName() {
    return this.description.name.replace(/\.[^.]+$/, "");
  }

  async picture() {
    const [width, height] = this.size;
    save(await this.viewer.screenshot({ width, height }), `${this.fileName}.png`);
    announce("The picture is saved");
  }

  /** Films the chosen path into an MP4; asked again while it does, it stops. */
  async film() {
    if (this.filming) {
      this.filming = false;
      return;
    }
    const { timeline, viewer } = this, size = this.size.map((v) => Math.max(2, 2 * Math.floor(v / 2)));
    this.filming = true;
    viewer.stop();
    $("film").ariaPressed = "true";
    const going = (share) => {
      toast(`Filming at ${size.join(" x ")}: ${Math.round(100 * share)} %. Press again to stop.`);
      return this.filming;
    };
    try {
      const made = await film(viewer, timeline.poses(timeline.chosen, size[0] / size[1]), size, going);
      if (made) save(made, `${this.fileName}.mp4`);
      toast(made ? "The film is saved" : "No film was saved");
    } catch (error) {
      toast(`No film: ${error.message}`);
    } finally {
      this.filming = false;
      $("film").ariaPressed = "false";
    }
  }

  wire() {
    const { viewer } = this;
    const click = (id, act) => $(id).addEventListener("click", (event) => {
      act();
      if (event.detail) $("canvas").focus({ preventScroll: true }); // by pointer: keys fly again
    });
    click("do-home", () => viewer.home());
    click("lost-home", () => viewer.home());
    click("do-frame", () => viewer.frameAll());
    click("do-compare", () => this.compare.toggle());
    click("do-shot", () => this.picture());
    click("film", () => this.film());
    $("film").hidden = !canFilm;
    click("do-full", () => (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen?.()));
    $("do-settings").addEventListener("click", () => this.open("settings"));
    $("do-edit").addEventListener("click", () => this.open("edit"));
    $("do-help").addEventListener("click", () => $("help").showModal());
    document.addEventListener("fullscreenchange", () => { $("do-full").ariaPressed = String(Boolean(document.fullscreenElement)); });
    for (const radio of document.querySelectorAll("[name=show]")) {
      const there = radio.value === "world" || this.description.clouds.includes(radio.value);
      radio.disabled = !there;
      radio.parentElement.hidden = !there;
      radio.addEventListener("change", () => this.show(radio.value));
    }
    $("show").hidden = !this.description.clouds.length;
    $("show-cameras").checked = Boolean(this.description.show_cameras);
    $("show-cameras").addEventListener("change", () => this.overlay.showCameras($("show-cameras").checked));
    this.overlay.showCameras($("show-cameras").checked);
    $("show-coverage").addEventListener("change", () => this.tint());
    this.wireLook();
    document.addEventListener("keydown", (event) => this.key(event));
    for (const name of ["keydown", "keyup"]) {
      addEventListener(name, (event) => {
        if (event.key !== "Shift") return;
        this.fast = name === "keydown";
        this.speed();
      });
    }
    $("do-compare").hidden = !this.description.frames;
    $("do-edit").hidden = Boolean(this.description.unfinished);
  }

  wireLook() {
    const { viewer } = this;
    const degrees = () => Math.round((viewer.pose.fov * 180) / Math.PI);
    $("fov").addEventListener("input", () => viewer.setFov((Number($("fov").value) * Math.PI) / 180));
    const words = () => {
      if (document.activeElement !== $("fov")) $("fov").value = String(degrees());
      $("fov-words").textContent = `${degrees()}\u00b0`;
    };
    viewer.on("pose", words);
    words();
    $("background").addEventListener("input", () => {
      const colour = $("background").value.match(/[0-9a-f]{2}/gi).map((h) => parseInt(h, 16) / 255);
      viewer.setBackground(colour);
      storage.set("background", $("background").value);
    });
    if (storage.get("background")) {
      $("background").value = storage.get("background");
      $("background").dispatchEvent(new Event("input"));
    }
    $("speed").addEventListener("input", () => this.speed());
    this.speed();
  }

  speed() {
    const factor = 2 ** Number($("speed").value);
    $("speed-words").textContent = `${factor.toFixed(factor < 1 ? 2 : 1)}x`;
    this.viewer.controls.speed = factor * (this.fast ? 3 : 1);
  }

  open(which) {
    for (const id of ["settings", "edit"]) {
      const shown = id === which && $(id).hidden;
      $(id).hidden = !shown;
      $(`do-${id}`).ariaExpanded = String(shown);
    }
    if ($("edit").hidden) this.editor.rest();
    else this.show("world");
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) {
      if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !$("edit").hidden) this.editor.undo();
      return;
    }
    if (event.target.closest("input, select, dialog")) return;
    const shown = { 1: "world", 2: "before", 3: "after" }[event.key];
    if (shown && (shown === "world" || this.description.clouds.includes(shown))) return void this.show(shown);
    const act = {
      c: () => this.compare.toggle(), b: () => this.timeline.keep(), p: () => this.picture(), x: () => this.open("edit"),
      ",": () => this.timeline.step(-1), ".": () => this.timeline.step(1), "?": () => $("help").showModal(),
      delete: () => this.editor.remove(), backspace: () => this.editor.remove(), escape: () => this.open(""),
      r: () => this.viewer.home(), f: () => this.viewer.frameAll(),
    }[event.key.toLowerCase()];
    // R and F on the canvas are the controls' own.
    if (act && !(event.target.id === "canvas" && /^[rf]$/i.test(event.key))) act();
  }
}

/** A file's bytes, with the share that is there shown while it comes. */
async function fetched(address, total = 0, quietly = false) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || `the server said ${answer.status}`);
  if (quietly || !answer.body || !total) return answer.arrayBuffer();
  const bytes = new Uint8Array(total), reader = answer.body.getReader();
  let at = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (at + value.length > total) return (await fetch(address)).arrayBuffer(); // replaced while it came
    bytes.set(value, at);
    at += value.length;
    $("loading-bar").value = at / total;
  }
  return at === total ? bytes.buffer : bytes.slice(0, at).buffer;
}

async function begin() {
  try {
    const answer = await fetch("view.json");
    const description = await answer.json();
    if (!answer.ok) throw new Error([description.error, description.hint].filter(Boolean).join("\n"));
    globalThis.app = new App(description);
    await globalThis.app.start();
  } catch (error) {
    console.error(error);
    $("loading").hidden = false;
    $("loading-bar").hidden = true;
    $("loading-words").textContent = `${error.message}`;
    $("loading-words").setAttribute("role", "alert");
  }
}

begin();
