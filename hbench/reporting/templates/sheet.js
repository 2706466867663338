"use strict";
const { sheet, assessor, columns, examples, samples } = document.body.dataset;
const byId = (id) => document.getElementById(id);
const total = document.querySelectorAll(".item").length;
const END = total + 1; // page 0 is the instructions, pages 1..total the items
const items = Array.from({ length: total }, (_, i) => i + 1);
const storageKey = `hbench-mos:${sheet}`;
const fresh = () => ({ marks: {}, names: {}, history: [], at: 0, shortcuts: true });
let state = fresh();
let exported = true; // nothing to lose yet
let thanked = false; // complete marks have been exported and not changed since

// Keeping marks --------------------------------------------------------------------------------------------------

function warn(text) {
  byId("warning").textContent = text;
  byId("warning").hidden = !text;
}

// Only what this sheet could have written; anything else in the storage is not to be trusted.
function checked(saved) {
  const clean = fresh();
  for (const item of items) {
    if ([0, 1].includes(saved.marks?.[item])) clean.marks[item] = saved.marks[item];
    if (typeof saved.names?.[item] === "string") clean.names[item] = saved.names[item].slice(0, 80);
  }
  if (Array.isArray(saved.history)) {
    clean.history = saved.history.filter((step) => Array.isArray(step) && items.includes(step[0]) && [0, 1, null].includes(step[1]));
  }
  if (Number.isInteger(saved.at) && saved.at >= 0 && saved.at <= END) clean.at = saved.at;
  clean.shortcuts = saved.shortcuts !== false;
  return clean;
}

function load() {
  try {
    const saved = localStorage.getItem(storageKey);
    if (saved !== null) state = checked(JSON.parse(saved) ?? {});
  } catch (error) {
    if (error instanceof SyntaxError) warn("The marks kept in this browser are damaged and were left out.");
  }
}

function save() {
  try {
    localStorage.setItem(storageKey, JSON.stringify(state));
    byId("saved").textContent = "saved in this browser";
    return true;
  } catch {
    byId("saved").textContent = "not saved";
    warn("This browser does not keep your marks: export them before you close or reload this page, and read them in again after it.");
    return false;
  }
}

// Marking --------------------------------------------------------------------------------------------------------

const unmarked = () => items.filter((item) => !(item in state.marks));
const say = (text) => { byId("live").textContent = text; };

function change() {
  exported = thanked = false;
  save();
}

function mark(value) {
  const item = state.at;
  if (item < 1 || item > total) return;
  state.history.push([item, state.marks[item] ?? null]);
  state.marks[item] = value;
  const missing = unmarked();
  state.at = missing.find((other) => other > item) ?? missing[0] ?? END;
  change();
  show(`Item ${item} marked ${value}.`);
}

function undo() {
  const step = state.history.pop();
  if (!step) return;
  const [item, before] = step;
  if (before === null) delete state.marks[item];
  else state.marks[item] = before;
  state.at = item;
  change();
  show(`Mark of item ${item} taken back.`);
}

function go(page) {
  if (page < 0 || page > END) return;
  state.at = page;
  save();
  show("");
}

// Showing --------------------------------------------------------------------------------------------------------

function refresh() {
  const { at, marks, names } = state;
  const onItem = at >= 1 && at <= total;
  document.querySelectorAll(".page").forEach((page, i) => { page.hidden = i !== at; });
  document.querySelector("main").classList.toggle("reading", !onItem);
  byId("panel").hidden = !onItem;
  byId("instructions").hidden = at === 0;
  byId("shortcuts").checked = state.shortcuts;
  byId("over").disabled = total === unmarked().length && !Object.values(names).some(Boolean);
  byId("start").textContent = total > unmarked().length ? "Go on" : "Start";
  const done = total - unmarked().length;
  byId("progress").value = done;
  byId("count").textContent = `${done} of ${total} marked`;
  byId("where").textContent = onItem ? `, item ${at} of ${total}` : "";
  byId("undo").disabled = !state.history.length;
  if (onItem) {
    byId("name").value = names[at] ?? "";
    for (const button of document.querySelectorAll("[data-mark]")) {
      button.setAttribute("aria-pressed", String(marks[at] === Number(button.dataset.mark)));
    }
    fit();
  }
  const missing = unmarked();
  byId("summary").textContent = missing.length
    ? `${missing.length} of ${total} items have no mark yet: ${missing.join(", ")}. An incomplete sheet cannot be scored.`
    : `All ${total} items are marked.`;
  byId("unmarked").hidden = !missing.length;
  byId("thanks").hidden = !thanked;
  byId("download").textContent = missing.length ? "Export the incomplete marks" : "Export CSV";
  byId("download").classList.toggle("main", !missing.length);
}

function show(message) {
  refresh();
  const page = byId(`page-${state.at}`);
  page.focus({ preventScroll: true });
  window.scrollTo(0, 0);
  say(state.at in state.marks ? `${message} This item is marked ${state.marks[state.at]}.` : message); // the focus says which
}

// The largest grid that fits, in one or two blocks of rows, each image pixel a whole number of screen pixels.
function fit() {
  const grid = byId(`page-${state.at}`).querySelector(".grid");
  const image = grid.querySelector("img");
  if (!image.naturalWidth) {
    image.addEventListener("load", fit, { once: true });
    return;
  }
  const { left, top } = grid.getBoundingClientRect();
  const panel = byId("panel").getBoundingClientRect();
  const beside = panel.left > left;
  const width = (beside ? panel.left - 24 : document.documentElement.clientWidth - 16) - left;
  const height = innerHeight - (top + scrollY) - (beside ? 16 : panel.height + 32);
  const least = (64 * samples) / image.naturalWidth; // rather scroll than squint
  let best = { scale: 0 };
  for (const blocks of [1, 2]) {
    const rows = Math.ceil(examples / blocks);
    const wide = (width - 24 * (blocks - 1)) / (blocks * image.naturalWidth);
    const scale = Math.min(wide, Math.max(height / (rows * image.naturalHeight), least));
    if (scale > best.scale) best = { scale, rows };
  }
  const device = best.scale * devicePixelRatio;
  const scale = device >= 1 ? Math.floor(device) / devicePixelRatio : best.scale;
  grid.style.setProperty("--rows", best.rows);
  grid.style.setProperty("--row-width", `${scale * image.naturalWidth}px`);
  grid.style.setProperty("--rendering", device >= 1 ? "pixelated" : "auto");
}

// Export ---------------------------------------------------------------------------------------------------------

// A name such as "=1+1" would be run by a spreadsheet; "hbench mos score" takes the apostrophe off again.
const cell = (value) => {
  const text = String(value).replace(/\s+/g, " ").trim();
  return `"${(/^[=+\-@]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
};

function csv() {
  const lines = items.map((item) => [sheet, assessor, item, state.marks[item] ?? "", cell(state.names[item] ?? "")].join(","));
  return `\ufeff${[columns, ...lines].join("\r\n")}\r\n`; // with its mark at the start, Excel reads UTF-8
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.download = `marks_${assessor}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  exported = true;
  if (unmarked().length) {
    say(`Exported to marks_${assessor}.csv.`);
    return;
  }
  const kept = save() ? " Your marks are also saved in this browser." : "";
  const text = `Thank you! marks_${assessor}.csv is among your downloads: send it back.${kept} You may close this page.`;
  thanked = true;
  refresh();
  byId("thanks").textContent = text;
  say(text);
}

// The marks of a file that csv() wrote, perhaps saved again by a spreadsheet; null if it is another.
function read(text) {
  const saved = { marks: {}, names: {} };
  for (const line of text.replace(/^\ufeff/, "").split(/\r?\n/).slice(1).filter(Boolean)) {
    const cells = /^([^,]*),[^,]*,(\d+),([01]?),(?:"((?:[^"]|"")*)"|([^"]*))$/.exec(line);
    if (!cells || cells[1] !== sheet) return null;
    const [, , item, value, quoted, plain] = cells;
    if (value) saved.marks[item] = Number(value);
    saved.names[item] = (quoted ?? plain).replaceAll('""', '"').replace(/^'(?=[=+\-@])/, "");
  }
  return saved;
}

async function open(file) {
  let text;
  try {
    text = await file.text();
  } catch {
    warn(`${file.name} cannot be read: it was moved, changed or locked since it was chosen. Choose it again.`);
    return;
  }
  const saved = read(text);
  if (!saved) {
    warn(`${file.name} holds no marks of this sheet: open the one that was exported from it.`);
    return;
  }
  state = { ...checked(saved), shortcuts: state.shortcuts };
  change();
  warn("");
  show(`${total - unmarked().length} marks read.`);
}

function startOver() {
  if (!confirm("Take back all marks and names of this sheet?")) return;
  state = { ...fresh(), shortcuts: state.shortcuts };
  exported = true;
  save();
  show("All marks taken back.");
}

// Events ---------------------------------------------------------------------------------------------------------

document.querySelectorAll("[data-mark]").forEach((button) => button.addEventListener("click", () => mark(Number(button.dataset.mark))));
document.querySelector(".export").addEventListener("click", () => {
  go(END); // shows what is missing, or the thanks
  if (!unmarked().length) download();
});
byId("download").addEventListener("click", download);
byId("start").addEventListener("click", () => go(unmarked()[0] ?? END));
byId("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = ""; // the same file may be chosen again
  if (file) open(file);
});
byId("over").addEventListener("click", startOver);
byId("unmarked").addEventListener("click", () => go(unmarked()[0]));
byId("instructions").addEventListener("click", () => go(0));
byId("back").addEventListener("click", () => go(state.at - 1));
byId("next").addEventListener("click", () => go(state.at + 1));
byId("undo").addEventListener("click", undo);
byId("panel").addEventListener("submit", (event) => event.preventDefault());
byId("name").addEventListener("input", (event) => {
  state.names[state.at] = event.target.value;
  change();
});
byId("shortcuts").addEventListener("change", (event) => {
  state.shortcuts = event.target.checked;
  save();
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  if (event.target === byId("name")) {
    if (event.key === "Enter" || event.key === "Escape") byId(`page-${state.at}`).focus({ preventScroll: true });
    else return;
    event.preventDefault();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const actions = {
    0: () => mark(0),
    1: () => mark(1),
    ArrowLeft: () => go(state.at - 1),
    ArrowRight: () => go(state.at + 1),
    u: undo,
    Backspace: undo,
    n: () => byId("panel").hidden || byId("name").focus(),
  };
  if (!state.shortcuts || event.repeat || !Object.hasOwn(actions, key)) return; // a key held down must not mark on and on
  event.preventDefault();
  actions[key]();
});

window.addEventListener("resize", () => byId("panel").hidden || fit());
window.addEventListener("storage", (event) => { // the same sheet in another tab
  if (event.key !== storageKey) return;
  load();
  refresh();
});
window.addEventListener("beforeunload", (event) => {
  if (!exported && !save()) event.preventDefault();
});

byId("criteria").open = matchMedia("(min-width: 34rem) and (min-height: 32rem)").matches; // its heading says enough on a phone
document.documentElement.style.setProperty("--half", Math.ceil(examples / 2));
load();
save();
show("");
