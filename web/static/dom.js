// Elements, words and requests that all parts of the page use.

export const $ = (id) => document.getElementById(id);

/** An element with properties and children; text is only ever set as text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** As people say it: 40 s, 4 min, 1 h 20 min. */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole}\u00a0s`;
  if (whole < 600) return `${Math.floor(whole / 60)}\u00a0min\u00a0${String(whole % 60).padStart(2, "0")}\u00a0s`;
  const minutes = Math.round(whole / 60);
  return minutes < 60 ? `${minutes}\u00a0min` : `${Math.floor(minutes / 60)}\u00a0h\u00a0${String(minutes % 60).padStart(2, "0")}\u00a0min`;
}

/** A time that is only roughly known. */
export function roughly(seconds) {
  if (seconds < 50) return `${Math.max(5, 5 * Math.round(seconds / 5))}\u00a0s`;
  if (seconds < 3600) return `${Math.max(1, Math.round(seconds / 60))}\u00a0min`;
  return `${(seconds / 3600).toFixed(1)}\u00a0h`;
}

export function size(bytes) {
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))} kB`;
  if (bytes < 1e9) return `${(bytes / 1e6).toFixed(bytes % 1e6 ? 1 : 0)} MB`;
  return `${(bytes / 1e9).toFixed(2)} GB`;
}

export const when = (seconds) => new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

/** Asks the server for something; returns its answer, or null after telling why not. */
export async function ask(path, method = "POST") {
  let said = {};
  try {
    const answer = await fetch(path, { method });
    said = await answer.json().catch(() => ({}));
    if (answer.ok) return said;
    said.error ??= `the server said ${answer.status}`;
  } catch {
    said = { error: "The server does not answer.", hint: "Start it again with python -m web; nothing is lost." };
  }
  alert([said.error, said.hint].filter(Boolean).join("\n"));
  return null;
}

export function news(words) {
  $("news").textContent = words;
}
