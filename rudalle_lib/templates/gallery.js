"use strict";
// Texts go in through textContent and attributes alone, so a prompt can never become markup.
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const grid = byId("grid"), large = byId("large"), tiles = new Map();
const MARGIN = 600, TEXT = 104; // pixels drawn beyond the screen; height of the text under a picture
let all = [], shown = [], byPrompt = new Map();
let columns = 1, cell = 200, gap = 30, current = 0, opened = null, scheduled = false;

function element(name, text, className) {
  const node = document.createElement(name);
  if (text !== undefined && text !== null) node.textContent = text;
  if (className) node.className = className;
  return node;
}

const label = (reason) => data.reasons[reason] ? data.reasons[reason][0] : reason;
const counted = (number) => number.toLocaleString("en");
const hasScore = (item) => item.score !== undefined;

function frame(item) {
  if (!item.source) return element("div", item.reason ? label(item.reason) : "No picture", "frame empty");
  const box = element("div", undefined, "frame"), image = document.createElement("img");
  image.alt = item.caption;
  image.decoding = "async";
  image.src = item.source;
  box.append(image);
  return box;
}

// --- choosing and ordering

const ORDERS = {
  order: (a, b) => a.place - b.place,
  best: (a, b) => (b.score ?? -2) - (a.score ?? -2) || a.place - b.place,
  worst: (a, b) => (a.score ?? 2) - (b.score ?? 2) || a.place - b.place,
  text: ((collator) => (a, b) => collator.compare(a.caption, b.caption) || a.place - b.place)(new Intl.Collator()),
};

function fits(item, status, least, words) {
  if (status === "published" && item.reason) return false;
  if (status === "aside" && !item.reason) return false;
  if (status.startsWith("reason:") && item.reason !== status.slice(7)) return false;
  if (least !== null && !(item.score >= least)) return false;
  return words.every((word) => item.words.includes(word));
}

function choose() {
  const slider = byId("score"), status = byId("status").value;
  const least = Number(slider.value) > Number(slider.min) ? Number(slider.value) : null;
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = all.filter((item) => fits(item, status, least, words)).sort(ORDERS[byId("sort").value]);
  byId("score-value").textContent = least === null ? "any" : least.toFixed(3);
  byId("count").textContent = `${counted(shown.length)} of ${counted(all.length)}`;
  byId("none").hidden = shown.length > 0 || all.length === 0;
  current = Math.max(0, Math.min(current, shown.length - 1));
  redraw();
}

// --- the window of tiles that are drawn

function redraw() {
  for (const tile of tiles.values()) tile.remove();
  tiles.clear();
  const narrow = innerWidth <= 640, width = grid.clientWidth, least = narrow ? 140 : 190;
  gap = narrow ? 16 : 30;
  columns = Math.max(1, Math.floor((width + gap) / (least + gap)));
  cell = (width - gap * (columns - 1)) / columns;
  grid.style.height = `${Math.ceil(shown.length / columns) * rowHeight()}px`;
  draw();
}

const rowHeight = () => cell + TEXT + gap;

function draw() {
  scheduled = false;
  const top = -grid.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor((top - MARGIN) / rowHeight())) * columns;
  const last = Math.min(shown.length, Math.ceil((top + innerHeight + MARGIN) / rowHeight()) * columns);
  for (const [index, tile] of tiles)
    if ((index < first || index >= last) && index !== current) { tile.remove(); tiles.delete(index); }
  for (let index = first; index < last; index++) if (!tiles.has(index)) place(index);
  if (shown.length && !tiles.has(current)) place(current); // what has the focus stays
}

function place(index) {
  const item = shown[index], tile = element("li"), link = element("a");
  tile.style.width = `${cell}px`;
  tile.style.transform = `translate(${(index % columns) * (cell + gap)}px, ${Math.floor(index / columns) * rowHeight()}px)`;
  tile.setAttribute("aria-posinset", index + 1);
  tile.setAttribute("aria-setsize", shown.length);
  link.href = "#" + encodeURIComponent(item.key);
  link.tabIndex = index === current ? 0 : -1;
  link.dataset.index = index;
  const text = element("div", undefined, "text"), figures = element("p", undefined, "figures");
  if (hasScore(item)) figures.append(element("b", item.score.toFixed(3)), " ");
  if (item.reason) figures.append(element("i", label(item.reason)));
  else if (item.model) figures.append(item.model);
  text.append(element("p", item.caption || "(no text)", "caption"), figures);
  if (item.seed) text.append(element("p", `seed ${item.seed}`, "figures"));
  link.append(frame(item), text);
  tile.append(link);
  tiles.set(index, tile);
  const after = [...grid.children].find((node) => Number(node.firstChild.dataset.index) > index);
  grid.insertBefore(tile, after ?? null);
}

function focusOn(index) {
  const before = tiles.get(current);
  current = Math.max(0, Math.min(index, shown.length - 1));
  if (before) before.firstChild.tabIndex = -1;
  const top = grid.getBoundingClientRect().top + Math.floor(current / columns) * rowHeight();
  const head = byId("controls").offsetHeight + 12;
  if (top < head) scrollBy(0, top - head);
  else if (top + rowHeight() > innerHeight) scrollBy(0, top + rowHeight() - innerHeight);
  draw();
  const link = tiles.get(current)?.firstChild;
  if (link) { link.tabIndex = 0; link.focus({ preventScroll: true }); }
}

// --- one picture, large

function show(item) {
  opened = item;
  byId("large-picture").replaceChildren(item.source ? largePicture(item) : frame(item));
  byId("large-caption").textContent = item.caption || "(no text)";
  byId("large-translation").textContent = item.translation ?? "";
  byId("large-reason").replaceChildren(...(item.reason ? reasonOf(item) : []));
  byId("place").textContent = `${counted(shown.indexOf(item) + 1)} of ${counted(shown.length)}`;
  const siblings = (item.prompt && byPrompt.get(item.prompt)) || [];
  byId("siblings-part").hidden = siblings.length < 2;
  byId("siblings").replaceChildren(...[...siblings].sort(ORDERS.best).map(sibling));
  byId("replay-part").hidden = !item.id;
  byId("replay").textContent = item.id ? data.replay.replace("{id}", () => item.id) : "";
  byId("details").replaceChildren(...Object.entries(item.details).map(([name, value]) => pair(name.replaceAll("_", " "), value)));
  byId("copy").textContent = "Copy";
  if (!large.open) large.showModal();
  large.scrollTop = large.querySelector(".tale").scrollTop = 0;
  history.replaceState(null, "", "#" + encodeURIComponent(item.key));
}

function largePicture(item) {
  const image = document.createElement("img");
  image.alt = item.caption;
  image.src = item.source;
  return image;
}

function reasonOf(item) {
  const about = item.detail || (data.reasons[item.reason] ?? ["", ""])[1];
  return [element("i", `Set aside: ${label(item.reason)}.`), ` ${about}`];
}

function pair(name, value) {
  const row = element("div");
  row.append(element("dt", name), element("dd", String(value)));
  return row;
}

function sibling(item) {
  const row = element("li", undefined, item.reason ? "aside" : ""), button = element("button");
  button.type = "button";
  button.title = item.id ?? "";
  if (item === opened) row.setAttribute("aria-current", "true");
  button.append(frame(item), hasScore(item) ? item.score.toFixed(3) : "");
  button.addEventListener("click", () => show(item));
  row.append(button);
  return row;
}

function step(by) {
  const index = shown.indexOf(opened) + by;
  if (index < 0 || index >= shown.length) return;
  show(shown[index]);
  current = index;
}

async function copy() {
  try {
    await navigator.clipboard.writeText(byId("replay").textContent);
    byId("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId("replay"));
    byId("copy").textContent = "Selected";
  }
}

// --- data

function add(rows) {
  for (const item of rows) {
    item.place = all.length;
    item.key = item.id ?? `row-${item.place}`;
    const texts = [item.caption, item.translation, item.id, item.prompt, item.seed, item.model, item.reason];
    item.words = texts.filter(Boolean).join(" ").toLowerCase();
    if (item.prompt) byPrompt.set(item.prompt, [...(byPrompt.get(item.prompt) ?? []), item]);
    all.push(item);
  }
}

function load(source) {
  return new Promise((resolve) => {
    const script = document.createElement("script");
    script.src = source;
    script.onload = script.onerror = resolve;
    document.head.append(script);
  });
}

function drawHistogram() {
  const scored = all.filter(hasScore), scores = scored.map((item) => item.score), slider = byId("score");
  const least = scores.reduce((a, b) => Math.min(a, b), Infinity), most = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  document.querySelector(".score").hidden = !(most > least);
  if (!(most > least)) return;
  [slider.min, slider.max, slider.value] = [least, most, least];
  const bins = Array.from({ length: 48 }, () => [0, 0]);
  for (const item of scored) bins[Math.min(47, Math.floor(((item.score - least) / (most - least)) * 48))][item.reason ? 1 : 0]++;
  const tallest = Math.max(...bins.map(([kept, aside]) => kept + aside));
  byId("histogram").replaceChildren(...bins.flatMap(([kept, aside], x) => [bar(x, 0, (12 * kept) / tallest), bar(x, (12 * kept) / tallest, (12 * aside) / tallest, "aside")]));
}

function bar(x, base, height, className) {
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const values = { x: x + 0.1, y: 12 - base - height, width: 0.8, height, fill: "currentColor" };
  for (const [name, value] of Object.entries(values)) rect.setAttribute(name, value);
  if (className) rect.setAttribute("class", className);
  return rect;
}

function offerStatuses() {
  const select = byId("status"), choices = [["published", "published"], ["aside", "set aside"]];
  for (const reason of Object.keys(data.totals)) choices.push([`reason:${reason}`, `  ${label(reason).toLowerCase()} (${counted(data.totals[reason])})`]);
  choices.push(["all", "everything"]);
  for (const [value, text] of choices) {
    const option = element("option", text);
    option.value = value;
    select.append(option);
  }
}

function openFromAddress() {
  let key;
  try { key = decodeURIComponent(location.hash.slice(1)); } catch { return; }
  const item = key && all.find((one) => one.key === key);
  if (item) show(item);
}

async function start() {
  for (const [value, name] of data.facts) byId("facts").append(pair(name, value));
  byId("models").textContent = data.models.join("  ·  ");
  offerStatuses();
  add(data.rows);
  globalThis.galleryRows = add;
  if (all.length) choose();
  for (const source of data.chunks) {
    await load(source);
    if (all.length && !shown.length) choose();
  }
  drawHistogram();
  choose();
  openFromAddress();
}

// --- hands

function onGridKey(event) {
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -shown.length, End: shown.length };
  const by = moves[event.key];
  if (!by || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  focusOn(current + by);
}

grid.addEventListener("keydown", onGridKey);
grid.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  current = Number(link.dataset.index);
  show(shown[current]);
});
large.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
large.addEventListener("close", () => {
  history.replaceState(null, "", location.pathname + location.search);
  opened = null;
  focusOn(current);
});
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("close").addEventListener("click", () => large.close());
byId("copy").addEventListener("click", copy);
byId("controls").addEventListener("input", choose);
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("reset").addEventListener("click", () => { byId("controls").reset(); byId("score").value = byId("score").min; choose(); });
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || large.open || event.target.matches("input")) return;
  event.preventDefault();
  byId("search").focus();
});
addEventListener("scroll", () => { if (!scheduled) { scheduled = true; requestAnimationFrame(draw); } }, { passive: true });
addEventListener("resize", redraw);
start();
