// One run as a card: head, progress or result, and when it is open, everything that can be looked at, fetched or done.

import { $, ask, duration, make, news, roughly, size, when } from "./dom.js";
import { LiveWorld } from "./live.js";

const TITLES = {
  geometry: "Finding the cameras and depth", alignment: "Fitting each frame to the others", "joint alignment": "Fitting all frames together",
  "inverse deformation": "Undoing each frame's bending", "2dgs splats": "Growing the splats (2DGS)", "3dgs splats": "Growing the splats",
  "2dgs evaluation": "Films and quality (2DGS)", "3dgs evaluation": "Films and quality", exports: "Files to download",
};
const WORDS = { queued: "waiting", running: "at work", done: "done", failed: "failed", cancelled: "cancelled" };
const GRADES = { excellent: "excellent", good: "good", usable: "usable in parts", poor: "poor" };
// Written into the standing card, so that films, focus and open logs stay.
const MOVING = ["now", "step", "total", "phase", "share", "left", "known", "starts_in", "previews_version"];
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export function title(stage) {
  return TITLES[stage] || stage;
}

export function settings(job) {
  const words = [job.about, `${job.mode === "fast" ? "Fast" : "Extensive"} preset`];
  if (job.renderer) words.push(job.renderer === "both" ? "2dgs and 3dgs" : job.renderer);
  if (job.frames) words.push(`at most ${job.frames} frames`);
  if (job.resolution) words.push(`at ${job.resolution}\u00a0px`);
  return words.filter(Boolean).join(", ");
}

/** What is said of a run in one word or two. */
export function badge(job) {
  if (job.cancelling) return ["stopping", "queued"];
  if (job.extras) return ["writing a file", "running"];
  if (job.state === "queued" && job.place > 1) return [`waiting, number ${job.place}`, "queued"];
  if (job.state === "done" && job.verdicts.length) return [GRADES[job.verdicts[0].grade], `done ${job.verdicts[0].grade}`];
  return [WORDS[job.state], job.state];
}

/** What decides the structure of a card. */
export function looks(job, isOpen) {
  return JSON.stringify([isOpen, Object.fromEntries(Object.entries(job).filter(([name]) => !MOVING.includes(name)))]);
}

export function card(job, page) {
  const isOpen = job.id === page.open, [words, kind] = badge(job);
  const spent = job.state === "done" && job.spent ? `, made in ${duration(job.spent)}` : "";
  const head = make("button", { className: "head", type: "button", ariaExpanded: String(isOpen), onclick: () => page.show(job.id) },
    picture(job, isOpen),
    make("span", {}, make("span", { className: "name", textContent: job.name }),
      make("span", { className: "facts", textContent: settings(job) }),
      make("span", { className: "facts", textContent: `${when(job.created)}${spent}` })),
    make("span", { className: `badge ${kind}`, textContent: words }));
  const article = make("article", { className: "job card", id: `job-${job.id}` }, make("h3", {}, head));
  if (job.state === "running" || job.state === "queued") {
    article.append(make("div", { className: "now" }, make("p", {}, make("span"), make("span")),
      make("progress", { max: 1, value: 0, ariaLabel: `Progress of ${job.name}`, hidden: job.state === "queued" })));
  }
  if (job.error) {
    const where = job.stage ? `It stopped at: ${title(job.stage)}.` : "";
    article.append(make("p", { className: "problem", textContent: [where, `error: ${job.error}`, job.hint && `hint: ${job.hint}`].filter(Boolean).join("\n") }));
  }
  if (isOpen) article.append(body(job, page));
  return article;
}

/** The clip's picture; of a finished world its fly-through, which plays where the pointer is. */
function picture(job, isOpen) {
  if (!job.thumbnail) return make("span", { className: "picture" });
  const film = job.files.find((file) => file.kind === "film");
  if (!film || isOpen || calm.matches) return make("img", { className: "picture", alt: "", src: `jobs/${job.id}/thumbnail` });
  const video = make("video", { className: "picture", muted: true, loop: true, playsInline: true, preload: "none", tabIndex: -1, ariaHidden: "true",
    poster: `jobs/${job.id}/thumbnail`, src: `jobs/${job.id}/files/${film.key}` });
  video.addEventListener("pointerenter", () => video.play().catch(() => {}));
  video.addEventListener("pointerleave", () => video.pause());
  return video;
}

function body(job, page) {
  const parts = make("div", { className: "body" });
  if (job.state === "running" && !job.extras) parts.append(...underWay(job));
  for (const verdict of job.verdicts) parts.append(judged(verdict));
  const look = make("div", { className: "row look" });
  if (job.viewer && job.state !== "running") look.append(make("a", { className: "button main", href: `jobs/${job.id}/view/`, textContent: "Walk through it" }));
  if (job.report) look.append(make("a", { className: "button", href: `jobs/${job.id}/report`, target: "_blank", textContent: "Report" }));
  if (look.children.length) parts.append(look);
  parts.append(...(job.state === "done" ? [] : stages(job)), ...films(job), ...downloads(job, page));
  if (job.state === "done" && job.stages.length) {
    parts.append(make("details", { className: "log" }, make("summary", { textContent: "Steps and their times" }), ...stages(job).slice(1)));
  }
  if (job.started) parts.append(logPart(job));
  parts.append(actions(job, page));
  return parts;
}

function judged(verdict) {
  const words = [verdict.reason, verdict.avoid, verdict.advice].filter(Boolean);
  return make("div", { className: `verdict ${verdict.grade}` },
    make("p", {}, make("strong", { textContent: verdict.words }), verdict.renderer ? ` (${verdict.renderer})` : "", "."),
    make("p", { className: "facts", textContent: `${capital(words[0])}${verdict.avoid ? `; ${verdict.avoid}` : ""}. ${verdict.advice}`.trim() }));
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** What there is to see while it works: the clip, its depth, its points, and splats as they grow. */
function underWay(job) {
  const strip = make("div", { className: "strip" });
  const figure = (src, words, kind) => strip.append(make("figure", {}, make("img", { src, alt: "", "data-kind": kind }), make("figcaption", { textContent: words })));
  if (job.thumbnail) figure(`jobs/${job.id}/thumbnail`, "the clip", "");
  for (const kind of job.previews) figure(`jobs/${job.id}/previews/${kind}?${job.previews_version}`, kind, kind);
  const parts = [strip];
  if (job.viewer) {
    const live = make("div", { className: "live" });
    new LiveWorld(live, job);
    parts.unshift(live);
  }
  return parts;
}

function stages(job) {
  if (!job.stages.length) return [];
  const times = new Map(job.times.map((t) => [t.title, t.kept ? "kept" : duration(t.seconds)]));
  const list = make("ol", { className: "stages" });
  job.stages.forEach((stage, index) => {
    const failed = job.state === "failed" && stage === job.stage;
    const past = !failed && (job.state === "done" || index + 1 < job.number || times.has(stage));
    const under = job.state === "running" && index + 1 === job.number && !times.has(stage);
    list.append(make("li", { className: failed ? "failed" : past ? "past" : under ? "under" : "", ...(under ? { ariaCurrent: "step" } : {}) },
      title(stage), make("span", { textContent: failed ? "failed" : times.get(stage) || "" })));
  });
  return [make("h4", { textContent: "Steps" }), list];
}

function films(job) {
  const found = job.files.filter((file) => file.kind === "film");
  if (!found.length) return [];
  const figures = found.map((file, i) => {
    const address = `jobs/${job.id}/files/${file.key}`;
    return make("figure", {},
      make("video", { src: address, controls: true, loop: true, muted: true, playsInline: true, preload: "metadata", ariaLabel: file.words,
        autoplay: i === 0 && !calm.matches }),
      make("figcaption", {}, file.words, make("a", { href: `${address}?download`, textContent: `MP4, ${size(file.bytes)}`,
        ariaLabel: `Download ${file.words}, MP4, ${size(file.bytes)}` })));
  });
  return [make("h4", { textContent: "Films" }), make("div", { className: "films" }, ...figures)];
}

function downloads(job, page) {
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
  const missing = job.missing.filter((key) => page.state.formats[key]);
  if (job.extras) {
    const wanted = missing.filter((key) => job.wanted.includes(key)).map((key) => page.state.formats[key].name);
    parts.push(make("p", { className: "facts", textContent: `Being written: ${wanted.join("; ") || "a file"}. It takes a minute or so.` }));
  } else if (missing.length) {
    const select = make("select", { ariaLabel: "Another kind of file" }, ...missing.map((key) => {
      const { name, use } = page.state.formats[key];
      return make("option", { value: key, textContent: `${name}: ${use}` });
    }));
    parts.push(make("div", { className: "row" }, select, make("button", { type: "button", textContent: "Make this file too",
      onclick: async () => (await ask(`api/jobs/${job.id}/exports?kind=${select.value}`)) && page.refresh() })));
  }
  return parts;
}

function logPart(job) {
  const text = make("pre", { tabIndex: 0, ariaLabel: "Log" });
  const details = make("details", { className: "log", id: `log-${job.id}` }, make("summary", { textContent: "Log" }), text);
  details.addEventListener("toggle", async () => {
    if (!details.open) return;
    const answer = await fetch(`jobs/${job.id}/log`).catch(() => null);
    text.textContent = (answer && await answer.text()) || "Nothing yet.";
    text.scrollTop = text.scrollHeight;
  });
  return details;
}

function actions(job, page) {
  const row = make("div", { className: "row" });
  const act = (words, path, kind = "") => make("button", { type: "button", className: kind, textContent: words,
    onclick: async () => (await ask(path)) && page.refresh() });
  if (job.cancelling) {
    row.append(make("p", { className: "facts", role: "status", textContent: "Stopping; this takes some seconds. Finished steps are kept." }));
    return row;
  }
  if (job.extras || job.state === "queued" || job.state === "running") {
    row.append(make("button", { type: "button", textContent: "Cancel", onclick: () => {
      news(`${job.name}: stopping`);
      ask(`api/jobs/${job.id}/cancel`).then(() => page.refresh());
      setTimeout(() => page.refresh(), 150);
    } }));
    return row;
  }
  if (job.state !== "done") row.append(act("Go on", `api/jobs/${job.id}/resume`, "main"));
  row.append(make("button", { type: "button", textContent: "Again with other settings", onclick: () => again(job, page) }));
  row.append(make("button", { type: "button", className: "danger", textContent: "Delete", onclick: () => remove(job, page) }));
  return row;
}

/** Another world from the same clip. */
function again(job, page) {
  const form = $("again-form"), { mode, renderer, frames, resolution } = job;
  form.mode.value = mode === "fast" ? "extensive" : mode;
  form.renderer.value = renderer;
  form.frames.value = frames || "";
  form.resolution.value = resolution || "";
  $("again-words").textContent = `Another world from ${job.name}; this one stays.`;
  const cost = () => {
    const preset = page.state.presets[form.mode.value];
    form.frames.placeholder = preset.frames;
    form.resolution.placeholder = preset.resolution;
    $("again-cost").textContent = `The preset as it is takes about ${roughly(preset.seconds)}.`;
  };
  form.onchange = cost;
  cost();
  $("again").returnValue = "no";
  $("again").onclose = async () => {
    if ($("again").returnValue !== "yes") return;
    const said = await ask(`api/jobs/${job.id}/again?${new URLSearchParams(new FormData(form))}`);
    if (said?.id) {
      page.reveal(said.id);
      await page.refresh();
      document.querySelector(`#job-${said.id} .head`)?.focus();
    }
  };
  $("again").showModal();
}

function remove(job, page) {
  $("sure-words").textContent = `Delete ${job.name} with everything made from it? This cannot be undone.`;
  $("sure").onclose = async () => {
    const article = $(`job-${job.id}`);
    if ($("sure").returnValue !== "yes") {
      article?.querySelector(".danger")?.focus();
      return;
    }
    const next = article?.nextElementSibling || article?.previousElementSibling;
    if (!(await ask(`api/jobs/${job.id}`, "DELETE"))) return;
    await page.refresh();
    (next?.querySelector(".head") || $("worlds")).focus();
    news(`${job.name} is deleted`);
  };
  $("sure").returnValue = "no";
  $("sure").showModal();
}

/** Writes the moving numbers into a card. */
export function move(article, job) {
  const line = article.querySelector(".now");
  if (!line) return;
  const [what, left] = line.querySelectorAll("span"), bar = line.querySelector("progress");
  if (job.state === "queued") {
    what.textContent = job.starts_in > 5 ? `Starts in about ${roughly(job.starts_in)}` : "Starts soon";
    left.textContent = job.left ? `done in about ${roughly(job.left)}` : "";
    return;
  }
  const at = job.total ? ` ${job.step}/${job.total}` : "", stage = job.stages[job.number - 1];
  what.textContent = job.number ? `${title(stage)}${job.phase && job.phase !== stage ? `: ${job.phase}${at}` : at}` : "Starting";
  left.textContent = job.left === null ? `${duration(job.now - job.started)} so far` : `about ${job.known ? duration(job.left) : roughly(job.left)} left`;
  if (job.number) bar.value = job.share;
  else bar.removeAttribute("value");
  for (const image of article.querySelectorAll("img[data-kind]")) {
    const { kind } = image.dataset, address = `jobs/${job.id}/previews/${kind}?${job.previews_version}`;
    if (kind && image.getAttribute("src") !== address) image.src = address;
  }
}
