// New worlds: clips chosen or dropped anywhere, one world each, uploaded one after the other.

import { $, make, roughly, size } from "./dom.js";

export class Uploader {
  /** @param {{limits, presets}} state @param {(id: string) => void} made called for every clip that was taken */
  constructor(made) {
    this.made = made;
    this.state = null;
    this.files = [];
    this.sending = false;
    $("file").addEventListener("change", () => {
      this.choose([...$("file").files]);
      $("file").value = "";
    });
    $("new").addEventListener("submit", (event) => this.submit(event));
    $("new").addEventListener("change", () => this.describe());
    this.listenForDrops();
    addEventListener("beforeunload", (event) => { if (this.sending) event.preventDefault(); });
  }

  listenForDrops() {
    const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    addEventListener("dragenter", (event) => { if (files(event)) $("veil").hidden = false; });
    addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
    addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("veil").hidden = true; });
    addEventListener("drop", (event) => {
      $("veil").hidden = true;
      if (!event.dataTransfer?.files.length) return;
      event.preventDefault();
      this.choose([...event.dataTransfer.files]);
      $("new").scrollIntoView({ block: "nearest" });
    });
  }

  /** What the presets give and take on this machine. */
  describe() {
    if (!this.state) return;
    const { presets, limits, queue_seconds: queue } = this.state;
    for (const [mode, preset] of Object.entries(presets)) {
      const time = `about ${roughly(preset.seconds)}${preset.measured ? " here" : ""}`;
      $(`cost-${mode}`).textContent = `${time}: ${preset.frames} frames, ${preset.resolution}\u00a0px, ${preset.splats.toLocaleString("en")}\u00a0splats`;
    }
    const preset = presets[new FormData($("new")).get("mode")];
    document.querySelector("#new [name=frames]").placeholder = preset.frames;
    document.querySelector("#new [name=resolution]").placeholder = preset.resolution;
    $("file-help").textContent = `MP4, MOV, WebM, MKV or GIF, or a ZIP of frames; up to ${size(limits.bytes)}`;
    if (!this.sending) $("go").textContent = this.files.length > 1 ? `Make ${this.files.length} worlds` : "Make the world";
    $("go").title = queue > 60 ? `The queue is about ${roughly(queue)} long` : "";
  }

  problem(words) {
    $("problem").hidden = !words;
    $("problem").textContent = words || "";
  }

  choose(files) {
    this.problem("");
    const { types, bytes } = this.state.limits, wrong = [];
    for (const file of files) {
      const kind = (file.name.match(/\.[^.]+$/) || [""])[0].toLowerCase();
      if (!types.includes(kind)) wrong.push(`${file.name} is not a kind of file that can be used here.\nChoose one of: ${types.join(" ")}`);
      else if (file.size > bytes) wrong.push(`${file.name} has ${size(file.size)}; at most ${size(bytes)} are taken.\nChoose a shorter clip.`);
      else if (!this.files.some((f) => f.name === file.name && f.size === file.size)) this.files.push(file);
    }
    if (wrong.length) this.problem(wrong.join("\n"));
    this.list();
  }

  list() {
    $("drop").classList.toggle("chosen", this.files.length > 0);
    $("file-name").textContent = this.files.length === 1 ? `${this.files[0].name} (${size(this.files[0].size)})`
      : this.files.length ? `${this.files.length} clips` : "Choose clips, or drop them anywhere";
    $("chosen").hidden = !this.files.length;
    $("chosen").replaceChildren(...this.files.map((file, i) => make("li", {}, make("span", { textContent: `${file.name}, ${size(file.size)}` }),
      make("button", { type: "button", className: "quiet", textContent: "remove", ariaLabel: `Remove ${file.name}`, disabled: this.sending,
        onclick: () => { this.files.splice(i, 1); this.list(); $("file").focus(); } }))));
    this.describe();
  }

  async submit(event) {
    event.preventDefault();
    if (this.sending) return;
    if (!this.files.length) {
      this.problem("Choose a clip first.");
      $("file").focus();
      return;
    }
    this.problem("");
    this.sending = true;
    $("go").disabled = true;
    $("sent").hidden = false;
    const settings = new URLSearchParams(new FormData($("new"))), refused = [], count = this.files.length;
    for (let number = 1; this.files.length; number++) {
      const [file] = this.files;
      $("go").textContent = count > 1 ? `Uploading ${number} of ${count}` : "Uploading";
      const said = await this.send(file, settings);
      if (said.id) this.made(said.id);
      else refused.push([file, [said.error, said.hint].filter(Boolean).join("\n")]);
      this.files.shift();
      this.list();
    }
    this.sending = false;
    $("go").disabled = false;
    $("sent").hidden = true;
    if (refused.length) {
      this.problem(refused.map(([, words]) => words).join("\n"));
      this.files = refused.map(([file]) => file); // to try again with other settings, or to remove
    }
    this.list();
  }

  send(file, settings) {
    const asked = new URLSearchParams(settings), request = new XMLHttpRequest();
    asked.set("name", file.name);
    request.open("POST", `api/jobs?${asked}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    $("sent").value = 0;
    request.upload.onprogress = ({ loaded, total }) => {
      if (loaded === total) {
        $("sent").removeAttribute("value");
        $("go").textContent = "Looking at it";
      } else $("sent").value = loaded / total;
    };
    return new Promise((done) => {
      request.onloadend = () => {
        let said = {};
        try { said = JSON.parse(request.responseText); } catch { said = {}; }
        done(request.status === 201 ? said : { error: said.error || `${file.name}: the upload broke off.`, hint: said.hint });
      };
      request.send(file);
    });
  }
}
