// The page: keeps up with the server and draws the list of worlds.

import { badge, card, looks, move, title } from "./card.js";
import { $, news } from "./dom.js";
import { Uploader } from "./upload.js";

class Page {
  constructor() {
    this.state = null;
    this.open = location.hash.slice(1);
    this.spoken = new Map();
    this.uploader = new Uploader((id) => {
      this.reveal(id);
      this.refresh();
    });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.refresh(); });
    addEventListener("hashchange", () => {
      this.open = location.hash.slice(1);
      this.draw();
    });
    $("notify").addEventListener("click", async () => {
      await Notification.requestPermission();
      this.offerNotices();
    });
    this.keepUp();
  }

  /** Opens a run's card, or closes it. */
  show(id) {
    this.open = this.open === id ? "" : id;
    history.replaceState(null, "", this.open ? `#${this.open}` : location.pathname);
    this.draw();
  }

  reveal(id) {
    if (this.open !== id) this.show(id);
  }

  async refresh() {
    try {
      const answer = await fetch("api/state");
      if (answer.status === 401) location.reload(); // asks for the password
      if (!answer.ok) throw new Error(String(answer.status));
      const first = this.state === null;
      this.state = await answer.json();
      $("offline").hidden = true;
      $("trouble").hidden = !this.state.trouble;
      $("trouble").textContent = this.state.trouble && `${this.state.trouble}. Runs wait and go on when there is space.`;
      this.uploader.state = this.state;
      this.uploader.describe();
      if (first) {
        const active = this.state.jobs.find((job) => job.state === "running");
        if (!this.open && active) this.open = active.id;
        this.offerNotices();
      }
      this.draw();
    } catch (error) {
      console.warn(error);
      $("offline").hidden = false;
    }
  }

  async keepUp() {
    await this.refresh();
    const busy = this.state?.jobs.some((job) => job.state === "running" || job.state === "queued" || job.extras);
    setTimeout(() => this.keepUp(), document.hidden ? 10000 : busy ? 1000 : 4000);
  }

  /** Brings the list up to date; cards that have not changed stand, so that focus, films and open logs stay. */
  draw() {
    const { jobs } = this.state, list = $("jobs"), standing = new Map([...list.children].map((article) => [article.id, article]));
    $("empty").hidden = jobs.length > 0;
    jobs.forEach((job, index) => {
      const key = `job-${job.id}`, wanted = looks(job, job.id === this.open);
      let article = standing.get(key);
      standing.delete(key);
      if (!article || article.looks !== wanted) article = this.replace(article, job, wanted);
      if (list.children[index] !== article) list.insertBefore(article, list.children[index] || null);
      move(article, job);
      this.speak(job);
    });
    for (const gone of standing.values()) gone.remove();
    const running = jobs.find((job) => job.state === "running");
    document.title = running ? `${Math.floor(100 * running.share)} %: video_to_world` : "video_to_world";
  }

  replace(article, job, wanted) {
    const fresh = card(job, this);
    fresh.looks = wanted;
    if (!article) return fresh;
    const focused = article.contains(document.activeElement) ? focusKey(document.activeElement) : null;
    const logOpen = article.querySelector(`#log-${job.id}`)?.open;
    // A world that is being watched keeps its canvas.
    const live = article.querySelector(".live"), place = fresh.querySelector(".live");
    article.replaceWith(fresh);
    if (live && place) place.replaceWith(live);
    if (logOpen && fresh.querySelector(`#log-${job.id}`)) fresh.querySelector(`#log-${job.id}`).open = true;
    if (focused !== null) {
      const same = focusable(fresh).find((element) => focusKey(element) === focused);
      (same || fresh.querySelector(".head")).focus({ preventScroll: true });
    }
    return fresh;
  }

  /** Tells screen readers when a job changes state or stage, and whoever wants it when a world is done. */
  speak(job) {
    const words = job.state === "running" ? title(job.stages[job.number - 1] || "starting") : badge(job)[0], before = this.spoken.get(job.id);
    this.spoken.set(job.id, { words, state: job.state });
    if (before === undefined || before.words === words) return;
    news(`${job.name}: ${words}`);
    const over = before.state === "running" && (job.state === "done" || job.state === "failed");
    if (over && document.hidden && globalThis.Notification?.permission === "granted") new Notification(`${job.name}: ${words}`);
  }

  offerNotices() {
    $("notify").hidden = globalThis.Notification?.permission !== "default" || !isSecureContext;
  }
}

const focusable = (article) => [...article.querySelectorAll("button, a, summary, video[controls], pre, select")];
const focusKey = (element) => element.ariaLabel || element.textContent || "";

globalThis.page = new Page();
