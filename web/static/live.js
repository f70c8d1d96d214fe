// The splats of a run on its way, drawn in its card as they grow.

import { make } from "./dom.js";

const LOOK_MS = 4000;

export class LiveWorld {
  constructor(place, job) {
    this.place = place;
    this.address = `jobs/${job.id}/view/`;
    this.canvas = make("canvas", { role: "img", ariaLabel: `${job.name} as it is so far` });
    this.words = make("p", { className: "facts" }, "The world so far. Drag to look around, or ", make("a", { href: this.address, textContent: "open it large" }), ".");
    place.append(this.canvas, this.words);
    this.follow();
  }

  async follow() {
    try {
      const answer = await fetch(`${this.address}view.json`);
      if (answer.ok) await this.show(await answer.json());
    } catch (error) {
      console.warn(error);
    }
    if (this.place.isConnected) setTimeout(() => this.follow(), LOOK_MS);
    else this.viewer?.dispose();
  }

  async show(description) {
    if (description.version === this.version || !this.place.isConnected) return;
    const { createViewer } = await import("../viewer/viewer.js");
    this.viewer ??= await createViewer(this.canvas, { cameras: description.cameras, up: description.up, pixelRatio: 1 });
    await this.viewer.load(this.address + description.file);
    this.version = description.version;
  }
}
