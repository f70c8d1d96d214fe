"use strict";

const $ = (id) => document.getElementById(id);
const TITLES = {
  geometry: "Geometry: cameras and depth", alignment: "Alignment: each frame to the model", "joint alignment": "Alignment: all frames together",
  "inverse deformation": "Inverse deformation", "2dgs splats": "Splats, 2DGS", "3dgs splats": "Splats, 3DGS",
  "2dgs evaluation": "Films and quality, 2DGS", "3dgs evaluation": "Films and quality, 3DGS", exports: "Files to download",
};
const WORDS = { queued: "waiting", running: "running", done: "done", failed: "failed", cancelled: "cancelled" };
let state = null;
let chosenFile = null;
let open = location.hash.slice(1);
const spoken = new Map();

/** An element with properties and children; text is only ever set as text. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  if (whole < 60) return `${whole}\u00a0s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}\u00a0min\u00a0${two(whole % 60)}\u00a0s`;
  return `${Math.floor(whole / 3600)}\u00a0h\u00a0${two((whole % 3600) / 60)}\u00a0min`;
}

function size(bytes) {
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))} kB`;
  if (bytes < 1e9) return `${(bytes / 1e6).toFixed(bytes % 1e6 ? 1 : 0)} MB`;
  return `${(bytes / 1e9).toFixed(2)} GB`;
}

const when = (seconds) => new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

async function ask(path, method) {
  const answer = await fetch(path, { method });
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({ error: `the server said ${answer.status}` }));
    alert([said.error, said.hint].filter(Boolean).join("\n"));
  }
  await refresh();
}

// ------------------------------------------------------------------------------------------------ new world

function problem(words) {
  $("problem").hidden = !words;
  $("problem").textContent = words || "";
}

function choose(file) {
  problem("");
  chosenFile = null;
  $("drop").classList.remove("chosen");
  $("file-name").textContent = "Choose a clip, or drop it here";
  if (!file) return;
  const kind = (file.name.match(/\.[^.]+$/) || [""])[0].toLowerCase();
  const { types, bytes } = state.limits;
  if (!types.includes(kind)) return problem(`${file.name} is not a kind of file that can be used here.\nChoose one of: ${types.join(" ")}`);
  if (file.size > bytes) return problem(`${file.name} has ${size(file.size)}; at most ${size(bytes)} are taken.\nChoose a shorter clip.`);
  chosenFile = file;
  $("drop").classList.add("chosen");
  $("file-name").textContent = `${file.name} (${size(file.size)})`;
}

function send(event) {
  event.preventDefault();
  if (!chosenFile) {
    problem("Choose a clip first.");
    $("file").focus();
    return;
  }
  problem("");
  const asked = new URLSearchParams(new FormData($("new")));
  asked.set("name", chosenFile.name);
  const request = new XMLHttpRequest();
  request.open("POST", `api/jobs?${asked}`);
  request.setRequestHeader("Content-Type", "application/octet-stream");
  request.upload.onprogress = (progress) => { $("sent").value = progress.loaded / progress.total; };
  request.onloadend = () => {
    $("go").disabled = false;
    $("go").textContent = "Make the world";
    $("sent").hidden = true;
    let said = {};
    try { said = JSON.parse(request.responseText); } catch { said = {}; }
    if (request.status !== 201) {
      problem([said.error || "The upload broke off.", said.hint].filter(Boolean).join("\n"));
      return;
    }
    $("file").value = "";
    choose(null);
    show(said.id);
    refresh();
  };
  $("go").disabled = true;
  $("go").textContent = "Uploading";
  $("sent").value = 0;
  $("sent").hidden = false;
  request.send(chosenFile);
}

function describePresets() {
  for (const [mode, budget] of Object.entries(state.budgets)) {
    $(`about-${mode}`).textContent = `${budget.frames} frames, ${budget.resolution}\u00a0px, ${budget.splats.toLocaleString("en")}\u00a0splats`;
  }
  const budget = state.budgets[new FormData($("new")).get("mode")];
  document.querySelector("[name=frames]").placeholder = budget.frames;
  document.querySelector("[name=resolution]").placeholder = budget.resolution;
  $("file-help").textContent = `MP4, MOV, WebM, MKV or GIF, or a ZIP of frames; up to ${size(state.limits.bytes)}`;
}

// ------------------------------------------------------------------------------------------------ worlds

function show(id) {
  open = open === id ? "" : id;
  history.replaceState(null, "", open ? `#${open}` : location.pathname);
  draw();
}

function settings(job) {
  const words = [job.about, `${job.mode} preset`];
  if (job.renderer) words.push(job.renderer === "both" ? "2dgs and 3dgs" : job.renderer);
  if (job.frames) words.push(`at most ${job.frames} frames`);
  if (job.resolution) words.push(`at ${job.resolution}\u00a0px`);
  return words.filter(Boolean).join(", ");
}

function stateWords(job) {
  return job.state === "queued" && job.place > 1 ? `waiting, number ${job.place}` : WORDS[job.state];
}

/** What decides the structure of a card; numbers that move are written into the standing card. */
function shape(job) {
  const moving = ["now", "step", "total", "phase", "phase_left", "left"];
  return JSON.stringify([job.id === open, Object.fromEntries(Object.entries(job).filter(([name]) => !moving.includes(name)))]);
}

function card(job) {
  const isOpen = job.id === open;
  const picture = job.thumbnail
    ? make("img", { className: "picture", alt: "", src: `jobs/${job.id}/thumbnail` }) : make("span", { className: "picture" });
  const spent = job.state === "done" && job.spent ? `, made in ${duration(job.spent)}` : "";
  const head = make("button", { className: "head", type: "button", ariaExpanded: String(isOpen), onclick: () => show(job.id) },
    picture,
    make("span", {}, make("span", { className: "name", textContent: job.name }),
      make("span", { className: "facts", textContent: settings(job) }),
      make("span", { className: "facts", textContent: `${when(job.created)}${spent}` })),
    make("span", { className: `badge ${job.state}`, textContent: stateWords(job) }));
  const article = make("article", { className: "job card", id: `job-${job.id}` }, make("h3", {}, head));
  if (job.state === "running") {
    article.append(make("div", { className: "now" }, make("p", {}, make("span"), make("span")),
      make("progress", { max: 1, ariaLabel: `Progress of ${job.name}` })));
  }
  if (job.error) article.append(make("p", { className: "problem", textContent: [`error: ${job.error}`, job.hint && `hint: ${job.hint}`].filter(Boolean).join("\n") }));
  if (isOpen) article.append(body(job));
  return article;
}

function body(job) {
  const parts = make("div", { className: "body" });
  const look = make("div", { className: "row" });
  if (job.viewer) {
    look.append(make("a", { className: "button main", href: `jobs/${job.id}/view/`, textContent: "Open 3D viewer" }));
  }
  if (job.report) look.append(make("a", { className: "button", href: `jobs/${job.id}/report`, target: "_blank", textContent: "Report" }));
  if (look.children.length) parts.append(look);
  for (const line of job.quality) parts.append(make("p", { className: "facts quality", textContent: line }));
  parts.append(...(job.state === "done" ? [] : stages(job)), ...films(job), ...downloads(job));
  if (job.state === "done" && job.stages.length) {
    parts.append(make("details", { className: "log" }, make("summary", { textContent: "Stages and their times" }), ...stages(job).slice(1)));
  }
  if (job.started) parts.append(logPart(job));
  parts.append(actions(job));
  return parts;
}

function stages(job) {
  if (!job.stages.length) return [];
  const times = new Map(job.times.map((t) => [t.title, t.kept ? "kept" : duration(t.seconds)]));
  const list = make("ol", { className: "stages" });
  job.stages.forEach((title, index) => {
    const past = job.state === "done" || index + 1 < job.number || times.has(title);
    const under = job.state === "running" && index + 1 === job.number && !times.has(title);
    list.append(make("li", { className: past ? "past" : under ? "under" : "", ...(under ? { ariaCurrent: "step" } : {}) },
      TITLES[title] || title, make("span", { textContent: times.get(title) || "" })));
  });
  return [make("h4", { textContent: "Stages" }), list];
}

function films(job) {
  const found = job.files.filter((file) => file.kind === "film");
  if (!found.length) return [];
  const figures = found.map((file) => {
    const address = `jobs/${job.id}/files/${file.key}`;
    return make("figure", {},
      make("video", { src: address, controls: true, loop: true, muted: true, playsInline: true, preload: "metadata", ariaLabel: file.words }),
      make("figcaption", {}, file.words, make("a", { href: `${address}?download`, textContent: `MP4, ${size(file.bytes)}`,
        ariaLabel: `Download ${file.words}, MP4, ${size(file.bytes)}` })));
  });
  return [make("h4", { textContent: "Films" }), make("div", { className: "films" }, ...figures)];
}

function downloads(job) {
  const found = job.files.filter((file) => file.kind === "export");
  if (!found.length && !job.report) return [];
  const list = make("ul", { className: "files" });
  for (const file of found) {
    list.append(make("li", {}, make("a", { href: `jobs/${job.id}/files/${file.key}`, textContent: file.words, download: "" }),
      make("span", { textContent: size(file.bytes) })));
  }
  list.append(make("li", {}, make("a", { href: `jobs/${job.id}/papers.zip`, textContent: "Report, metrics and settings, ZIP", download: "" })));
  const parts = [make("h4", { textContent: "Downloads" }), list];
  for (const [kind, error] of Object.entries(job.export_errors)) {
    parts.push(make("p", { className: "problem", textContent: `${kind} could not be made: ${error}` }));
  }
  if (job.state === "done" && state.mesh && !job.mesh_wanted) {
    parts.push(make("div", { className: "row" }, make("button", { type: "button", textContent: "Make a mesh too",
      onclick: () => ask(`api/jobs/${job.id}/exports?kind=mesh`, "POST") })));
  }
  return parts;
}

function logPart(job) {
  const text = make("pre", { tabIndex: 0, ariaLabel: "Log" });
  const details = make("details", { className: "log", id: `log-${job.id}` }, make("summary", { textContent: "Log" }), text);
  details.addEventListener("toggle", async () => {
    if (!details.open) return;
    text.textContent = await (await fetch(`jobs/${job.id}/log`)).text() || "Nothing yet.";
    text.scrollTop = text.scrollHeight;
  });
  return details;
}

function actions(job) {
  const row = make("div", { className: "row" });
  if (job.state === "queued" || job.state === "running") {
    row.append(make("button", { type: "button", textContent: "Cancel", onclick: () => ask(`api/jobs/${job.id}/cancel`, "POST") }));
    return row;
  }
  if (job.state !== "done") {
    row.append(make("button", { type: "button", className: "main", textContent: "Go on", onclick: () => ask(`api/jobs/${job.id}/resume`, "POST") }));
  }
  row.append(make("button", { type: "button", className: "danger", textContent: "Delete", onclick: () => remove(job) }));
  return row;
}

function remove(job) {
  $("sure-words").textContent = `Delete ${job.name} with everything made from it? This cannot be undone.`;
  $("sure").onclose = () => {
    if ($("sure").returnValue === "yes") ask(`api/jobs/${job.id}`, "DELETE");
    else document.querySelector(`#job-${job.id} .danger`)?.focus();
  };
  $("sure").returnValue = "no";
  $("sure").showModal();
}

/** Writes the moving numbers into a card. */
function move(article, job) {
  if (job.state !== "running") return;
  const [what, left] = article.querySelectorAll(".now span");
  const bar = article.querySelector(".now progress");
  const count = job.stages.length || 1;
  const share = job.total ? job.step / job.total : 0;
  const title = job.stages[job.number - 1] || "starting";
  const inside = job.phase && job.phase !== title ? `: ${job.phase}` : "";
  const at = job.total ? ` ${job.step}/${job.total}` : "";
  what.textContent = job.number ? `Stage ${job.number} of ${count}${inside}${at}` : "Starting";
  if (job.left !== null) left.textContent = `about ${duration(job.left)} left`;
  else if (job.phase_left !== null) left.textContent = `this step: about ${duration(job.phase_left)} left`;
  else left.textContent = `${duration(job.now - job.started)} so far`;
  bar.value = Math.max(0, job.number - 1 + share) / count;
}

/** Brings the list up to date; cards that have not changed stand, so that focus, films and open logs stay. */
function draw() {
  const list = $("jobs");
  $("empty").hidden = state.jobs.length > 0;
  const standing = new Map([...list.children].map((element) => [element.id, element]));
  state.jobs.forEach((job, index) => {
    let article = standing.get(`job-${job.id}`);
    standing.delete(`job-${job.id}`);
    const looks = shape(job);
    if (!article || article.looks !== looks) {
      const fresh = card(job);
      fresh.looks = looks;
      const focused = article && article.contains(document.activeElement) ? focusKey(article, document.activeElement) : null;
      const logOpen = article?.querySelector(`#log-${job.id}`)?.open;
      if (article) article.replaceWith(fresh);
      article = fresh;
      if (list.children[index] !== article) list.insertBefore(article, list.children[index] || null);
      const log = article.querySelector(`#log-${job.id}`);
      if (logOpen && log) log.open = true;
      if (focused !== null) refocus(article, focused);
    } else if (list.children[index] !== article) {
      list.insertBefore(article, list.children[index] || null);
    }
    move(article, job);
    speak(job);
  });
  for (const gone of standing.values()) gone.remove();
}

const focusable = (article) => [...article.querySelectorAll("button, a, summary, video, pre")];
const focusKey = (article, element) => element.textContent || element.ariaLabel || "";
function refocus(article, key) {
  const same = focusable(article).find((element) => focusKey(article, element) === key);
  (same || article.querySelector(".head")).focus({ preventScroll: true });
}

/** Tells screen readers when a job changes state or stage. */
function speak(job) {
  const title = job.state === "running" ? job.stages[job.number - 1] || "running" : WORDS[job.state];
  const before = spoken.get(job.id);
  spoken.set(job.id, title);
  if (before !== undefined && before !== title) $("news").textContent = `${job.name}: ${title}`;
}

// ------------------------------------------------------------------------------------------------ keeping up

async function refresh() {
  try {
    const answer = await fetch("api/state");
    if (!answer.ok) throw new Error(String(answer.status));
    const first = state === null;
    state = await answer.json();
    $("offline").hidden = true;
    if (first) {
      const active = state.jobs.find((job) => job.state === "running");
      if (!open && active) open = active.id;
      describePresets();
    }
    draw();
    const busy = state.jobs.filter((job) => job.state === "running").length;
    document.title = busy ? "Working: video_to_world" : "video_to_world";
  } catch (error) {
    console.warn(error);
    $("offline").hidden = false;
  }
}

async function keepUp() {
  await refresh();
  const busy = state && state.jobs.some((job) => job.state === "running" || job.state === "queued");
  setTimeout(keepUp, document.hidden ? 10000 : busy ? 1000 : 4000);
}

$("file").addEventListener("change", () => choose($("file").files[0]));
for (const name of ["dragenter", "dragover"]) $("drop").addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
for (const name of ["dragleave", "drop"]) $("drop").addEventListener(name, () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => { event.preventDefault(); choose(event.dataTransfer.files[0]); });
// A clip that misses the field must not replace the page.
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
$("new").addEventListener("submit", send);
$("new").addEventListener("change", describePresets);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
window.addEventListener("hashchange", () => { open = location.hash.slice(1); draw(); });
keepUp();
