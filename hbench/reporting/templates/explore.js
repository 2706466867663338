"use strict";
const { width, height, columns, directions, magnitudes, names, samples } = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const half = (magnitudes.length - 1) / 2; // sliders count steps from -half to half; a pair takes every second one
const slider = (k) => byId(`slider-${k}`);
const context = byId("edited").getContext("2d");
const moved = new Map(); // step of each direction that is not at 0, the oldest first
let sample = 0;

// Pictures -------------------------------------------------------------------------------------------------------

// The place of an edit in the table of all: none, directions alone, then pairs; 0 is left out of the steps.
function place() {
  const rank = (step, most) => (step < 0 ? step + most : step + most - 1);
  const [first, second] = [...moved.keys()].map((k) => directions.indexOf(k)).sort((a, b) => a - b);
  const step = (i) => moved.get(directions[i]);
  if (first === undefined) return 0;
  if (second === undefined) return 1 + first * 2 * half + rank(step(first), half);
  const before = (first * (2 * directions.length - first - 1)) / 2 + (second - first - 1); // pairs
  return 1 + directions.length * 2 * half + before * half ** 2 + rank(step(first) / 2, half / 2) * half + rank(step(second) / 2, half / 2);
}

const sprites = new Map();

async function draw() {
  if (!sprites.has(sample)) {
    const image = new Image();
    image.src = samples[sample].sprite;
    sprites.set(sample, image.decode().then(() => image));
  }
  const image = await sprites.get(sample);
  const i = place();
  context.drawImage(image, (i % columns) * width, Math.floor(i / columns) * height, width, height, 0, 0, width, height);
}

// Sliders --------------------------------------------------------------------------------------------------------

const shown = (step) => {
  const s = magnitudes[step + half];
  return s ? `${s > 0 ? "+" : "−"}${+Math.abs(s).toPrecision(3)}` : "0";
};
const nameOf = (k) => byId(`name-${k}`).value.trim() || byId(`name-${k}`).placeholder;

// At most two directions are not at 0: the third one resets the oldest.
function move(k, step) {
  let note = "";
  if (!step) moved.delete(k);
  else {
    if (!moved.has(k) && moved.size === 2) {
      const [oldest] = moved.keys();
      moved.delete(oldest);
      note = `; ${nameOf(oldest)} is back at 0`;
    }
    moved.set(k, step);
  }
  if (moved.size === 2) for (const [each, at] of moved) moved.set(each, at + (at % 2)); // outwards, where a picture is
  refresh(note);
}

function refresh(note = "") {
  for (const k of directions) {
    const step = moved.get(k) ?? 0;
    const others = moved.size - moved.has(k);
    const at = 50 + (50 * step) / half; // in per cent
    slider(k).step = others ? 2 : 1;
    slider(k).value = step;
    slider(k).style.setProperty("--from", `${Math.min(50, at)}%`);
    slider(k).style.setProperty("--to", `${Math.max(50, at)}%`);
    slider(k).style.setProperty("--gap", (others ? 1 : 0.5) / half);
    slider(k).setAttribute("aria-valuetext", shown(step));
    slider(k).setAttribute("aria-label", `Direction ${k}: ${nameOf(k)}`);
    byId(`value-${k}`).textContent = shown(step);
    slider(k).closest("li").classList.toggle("moved", moved.has(k));
  }
  const edit = [...moved].map(([k, step]) => `${nameOf(k)} ${shown(step)}`).join(" and ");
  byId("edit").textContent = (edit || "All sliders are at 0") + note;
  byId("of").textContent = `original: ${samples[sample].name}`;
  byId("note").textContent = `edited${samples[sample].note}`;
  byId("original").alt = `Original: ${samples[sample].name}`;
  byId("edited").setAttribute("aria-label", `Edited: ${samples[sample].name}, ${edit || "no direction"}`);
  draw();
}

function choose(i) {
  sample = i;
  byId("original").src = document.querySelectorAll("#samples img")[i].src;
  refresh();
}

function reset() {
  moved.clear();
  refresh();
}

// Names ----------------------------------------------------------------------------------------------------------

// The reader of names.txt ends a line at more characters than a field refuses.
const line = (text) => text.replace(/[\s\x1c-\x1e\x85]+/g, " ").trim();
let saved = { ...names };

function unsaved() {
  return directions.filter((k) => line(byId(`name-${k}`).value) !== (saved[k] ?? ""));
}

function tell() {
  const open = unsaved();
  document.body.classList.toggle("unsaved", open.length > 0);
  const text = open.length ? `Not saved yet: the name${open.length > 1 ? "s" : ""} of ${open.join(", ")}.` : "All names are saved.";
  if (byId("unsaved").textContent !== text) byId("unsaved").textContent = text;
}

function save() {
  const all = { ...saved };
  for (const k of directions) {
    const name = line(byId(`name-${k}`).value);
    if (name) all[k] = name;
    else delete all[k];
  }
  const text = Object.entries(all).map(([k, name]) => `${k}: ${name}\n`).join(""); // whole numbers come in their order
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  link.download = "names.txt";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  saved = all;
  tell();
}

// Events ---------------------------------------------------------------------------------------------------------

for (const k of directions) {
  slider(k).addEventListener("input", () => move(k, Number(slider(k).value)));
  byId(`name-${k}`).addEventListener("input", () => {
    tell();
    refresh();
  });
}
for (const radio of document.querySelectorAll("#samples input")) radio.addEventListener("change", () => choose(Number(radio.value)));
byId("reset").addEventListener("click", reset);
byId("save").addEventListener("click", save);
window.addEventListener("beforeunload", (event) => {
  if (unsaved().length) event.preventDefault();
});

let digits = "";
let typed = 0; // time of the last digit

// Two digits in a row are one number, if there is such a direction.
function goTo(digit, time) {
  const both = time - typed < 1000 ? digits + digit : digit;
  digits = directions.includes(Number(both)) || directions.some((k) => String(k).startsWith(both)) ? both : digit;
  typed = time;
  if (directions.includes(Number(digits))) slider(Number(digits)).focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  const k = event.target.closest("li[data-direction]")?.dataset.direction;
  if (event.target.type === "text") {
    if (event.key === "Enter" || event.key === "Escape") slider(k).focus();
    return;
  }
  const key = event.key.toLowerCase();
  const actions = {
    n: () => k && byId(`name-${k}`).select(),
    p: () => document.querySelector("#samples :checked").focus(),
    r: reset,
  };
  if (!byId("shortcuts").checked || !(/^\d$/.test(key) || Object.hasOwn(actions, key))) return;
  event.preventDefault();
  if (Object.hasOwn(actions, key)) actions[key]();
  else goTo(key, event.timeStamp);
});

document.querySelector("#samples input").checked = true; // a reload may keep another one
refresh();
