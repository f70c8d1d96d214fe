// Of the report: the slider between two pictures, enlarged pictures, films that respect who wants no motion.
for (const box of document.querySelectorAll(".compare")) {
  box.classList.add("live");
  box.querySelector("input").addEventListener("input", (event) => box.style.setProperty("--at", `${event.target.value}%`));
}
const large = document.createElement("dialog");
large.addEventListener("click", () => large.close());
document.body.append(large);
for (const button of document.querySelectorAll(".zoom")) {
  button.addEventListener("click", () => {
    const image = button.querySelector("img").cloneNode();
    const close = Object.assign(document.createElement("button"), { type: "button", textContent: "Close" });
    large.replaceChildren(image, close);
    large.setAttribute("aria-label", image.alt);
    large.showModal();
  });
}
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
for (const film of document.querySelectorAll("video")) still ? film.pause() : film.play().catch(() => {});
