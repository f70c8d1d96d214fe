// Small things that the parts of the page share.

export const $ = (id) => document.getElementById(id);

/** Tells screen readers. */
export function announce(words) {
  $("news").textContent = words;
}

let _toast = 0;
/** Says something for some seconds. */
export function toast(words) {
  $("toast").textContent = words;
  $("toast").hidden = false;
  clearTimeout(_toast);
  _toast = setTimeout(() => { $("toast").hidden = true; }, 4000);
  announce(words);
}

/** Hands a file to the visitor. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Makes a link lead somewhere and shows it. */
export function reach(link, address) {
  link.href = address;
  link.hidden = false;
}

/** What the page remembers for this world, where the browser lets it. */
export const storage = {
  get(name) {
    try {
      return JSON.parse(localStorage.getItem(`${location.pathname} ${name}`));
    } catch {
      return null;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(`${location.pathname} ${name}`, JSON.stringify(value));
    } catch {
      return;
    }
  },
};
