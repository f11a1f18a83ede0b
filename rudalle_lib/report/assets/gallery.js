"use strict";
// Text is only inserted through textContent and attributes, so a prompt can never become markup.
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const grid = byId("grid"), viewer = byId("viewer"), tiles = new Map();
const MARGIN = 600, TEXT_HEIGHT = 104, HEADING = 54; // pixels rendered beyond the screen; heights of texts
const STEPS = 1000; // of the slider: its own numbers are rounded, so it counts steps between two scores
let all = [], shown = [], rows = [], headings = [], byPrompt = new Map(), byImage = new Map();
let columns = 1, cell = 200, gap = 30, current = 0, opened = null, comparing = false, scheduled = false;
let scores = [0, 0]; // the lowest and the highest one

function element(name, text, className) {
  const node = document.createElement(name);
  if (text !== undefined && text !== null) node.textContent = text;
  if (className) node.className = className;
  return node;
}

const known = (reason) => Object.hasOwn(data.reasons, reason) ? data.reasons[reason] : [reason, ""];
const reasonLabel = (reason) => known(reason)[0];
const shellWord = (text) => /^[\w.-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
const formatCount = (number) => number.toLocaleString("en");
const hasScore = (item) => item.score !== undefined;
const fold = (text) => text.normalize("NFKC").toLowerCase().replaceAll("ё", "е");

function frame(item) {
  if (!item.source && !item.thumb) return element("div", item.reason ? reasonLabel(item.reason) : "No image", "frame empty");
  const box = element("div", undefined, "frame"), image = document.createElement("img");
  image.alt = item.caption;
  image.decoding = "async";
  image.src = item.thumb ?? item.source;
  box.append(image);
  return box;
}

// --- filtering and sorting

const ORDERS = {
  order: (a, b) => a.position - b.position,
  best: (a, b) => (b.score ?? -2) - (a.score ?? -2) || a.position - b.position,
  worst: (a, b) => (a.score ?? 2) - (b.score ?? 2) || a.position - b.position,
  text: ((collator) => (a, b) => collator.compare(a.caption, b.caption) || a.position - b.position)(new Intl.Collator()),
};

function matches(item, status, minScore, words) {
  if (status === "published" && item.reason) return false;
  if (status === "rejected" && !item.reason) return false;
  if (status === "marked" && !marks.has(item.id)) return false;
  if (status.startsWith("reason:") && item.reason !== status.slice(7)) return false;
  if (minScore !== null && !(item.score >= minScore)) return false;
  return words.every((word) => item.words.includes(word));
}

function chosenScore() {
  const step = Number(byId("score").value), [lowest, highest] = scores;
  if (step === 0) return null;
  return step === STEPS ? highest : lowest + ((highest - lowest) * step) / STEPS;
}

function applyFilters() {
  const minScore = chosenScore(), status = byId("status").value;
  const words = fold(byId("search").value).split(/\s+/).filter(Boolean);
  shown = all.filter((item) => matches(item, status, minScore, words)).sort(ORDERS[byId("sort").value]);
  byId("score-value").textContent = minScore === null ? "any" : minScore.toFixed(3);
  byId("score").setAttribute("aria-valuetext", byId("score-value").textContent);
  byId("count").textContent = `${formatCount(shown.length)} of ${formatCount(all.length)}`;
  byId("no-matches").hidden = shown.length > 0 || all.length === 0;
  byId("more").textContent = filtersInUse() ? `Filters: ${filtersInUse()}` : "Filters";
  current = Math.max(0, Math.min(current, shown.length - 1));
  renderAllTiles();
}

// --- groups

const groupColumn = () => byId("group").value.slice("column:".length);
const collator = new Intl.Collator(undefined, { numeric: true });

function groupOf(item) {
  const by = byId("group").value;
  if (by === "") return "";
  return by === "prompt" ? item.prompt ?? "" : item.columns?.[groupColumn()] ?? "";
}

function groupTitle(key, items) {
  if (byId("group").value === "prompt") return items[0].caption || key || "(no prompt)";
  return key || `no ${groupColumn()}`;
}

function groups() {
  const found = new Map();
  for (const item of shown) {
    const key = groupOf(item);
    if (found.has(key)) found.get(key).push(item); else found.set(key, [item]);
  }
  const sorted = [...found];
  if (byId("group").value.startsWith("column:"))
    sorted.sort(([a], [b]) => (a === "") - (b === "") || collator.compare(a, b));
  return sorted;
}

// --- the tiles on and near the screen, in rows

function renderAllTiles() {
  for (const tile of tiles.values()) tile.remove();
  tiles.clear();
  const narrow = innerWidth <= 640, width = grid.clientWidth, minCell = narrow ? 140 : 190;
  gap = narrow ? 16 : 30;
  columns = Math.max(1, Math.floor((width + gap) / (minCell + gap)));
  cell = (width - gap * (columns - 1)) / columns;
  const sorted = groups(), titled = byId("group").value !== "";
  [rows, headings, shown] = [[], [], sorted.flatMap(([, items]) => items)];
  let top = 0, first = 0;
  for (const [key, items] of sorted) {
    if (titled) { headings.push({ top, text: groupTitle(key, items), count: items.length }); top += HEADING; }
    for (let start = 0; start < items.length; start += columns) {
      rows.push({ first: first + start, count: Math.min(columns, items.length - start), top });
      top += rowHeight();
    }
    first += items.length;
  }
  grid.style.height = `${top}px`;
  byId("headings").replaceChildren();
  renderTiles();
}

const rowHeight = () => cell + TEXT_HEIGHT + gap;

function lastBelow(list, key, limit) { // the last entry whose key is at most the limit, by bisection
  let low = 0, high = list.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (list[middle][key] <= limit) low = middle; else high = middle - 1;
  }
  return low;
}

const rowOf = (index) => lastBelow(rows, "first", index);

function renderTiles() {
  scheduled = false;
  if (!rows.length) return byId("headings").replaceChildren();
  const top = -grid.getBoundingClientRect().top;
  const from = rows[lastBelow(rows, "top", top - MARGIN - rowHeight())];
  const to = rows[lastBelow(rows, "top", top + innerHeight + MARGIN)];
  const first = from.first, last = to.first + to.count;
  for (const [index, tile] of tiles)
    if ((index < first || index >= last) && index !== current) { tile.remove(); tiles.delete(index); }
  for (let index = first; index < last; index++) if (!tiles.has(index)) addTile(index);
  if (shown.length && !tiles.has(current)) addTile(current); // keep the focused tile
  renderHeadings(top - MARGIN, top + innerHeight + MARGIN);
}

function renderHeadings(from, to) {
  const near = headings.filter((heading) => heading.top >= from - HEADING && heading.top <= to);
  byId("headings").replaceChildren(...near.map((heading) => {
    const node = element("h2", heading.text);
    node.append(" ", element("span", formatCount(heading.count)));
    node.style.top = `${heading.top}px`;
    return node;
  }));
}

function addTile(index) {
  const item = shown[index], tile = element("li"), link = element("a"), row = rows[rowOf(index)];
  tile.style.width = `${cell}px`;
  tile.style.transform = `translate(${(index - row.first) * (cell + gap)}px, ${row.top}px)`;
  tile.setAttribute("aria-posinset", index + 1);
  tile.setAttribute("aria-setsize", shown.length);
  link.href = "#" + encodeURIComponent(item.key);
  link.tabIndex = index === current ? 0 : -1;
  link.dataset.index = index;
  const text = element("div", undefined, "text"), figures = element("p", undefined, "figures");
  if (hasScore(item)) figures.append(element("b", item.score.toFixed(3)), " ");
  if (item.reason) figures.append(element("i", reasonLabel(item.reason)));
  else if (item.model) figures.append(item.model);
  text.append(element("p", item.caption || "(no text)", "caption"), figures);
  if (item.seed) text.append(element("p", `seed ${item.seed}`, "figures"));
  link.append(frame(item), text);
  tile.append(link);
  if (item.id) tile.append(markButton(item));
  tiles.set(index, tile);
  const after = [...grid.children].find((node) => Number(node.firstChild.dataset.index) > index);
  grid.insertBefore(tile, after ?? null);
}

function focusOn(index) {
  const before = tiles.get(current);
  current = Math.max(0, Math.min(index, shown.length - 1));
  if (!shown.length) return;
  if (before) before.firstChild.tabIndex = -1;
  const top = grid.getBoundingClientRect().top + rows[rowOf(current)].top;
  const head = byId("controls").offsetHeight + 12;
  if (top < head) scrollBy(0, top - head);
  else if (top + rowHeight() > innerHeight) scrollBy(0, top + rowHeight() - innerHeight);
  renderTiles();
  const link = tiles.get(current)?.firstChild;
  if (link) { link.tabIndex = 0; link.focus({ preventScroll: true }); }
}

function verticalNeighbour(step) {
  const at = rowOf(current), next = rows[at + step];
  return next ? next.first + Math.min(current - rows[at].first, next.count - 1) : current;
}

// --- decisions by hand, and the list of them

const STORE = `rudalle-flows ${data.replay}`, GLYPHS = { keep: "\u2713", reject: "\u00d7" };
const stored = readMarks();
const marks = new Map(stored.map(([id, decision]) => [id, decision]));
const notes = new Map(stored.flatMap(([id, , note]) => (typeof note === "string" && note ? [[id, note]] : [])));

function readMarks() {
  try {
    const found = JSON.parse(localStorage.getItem(STORE) ?? "[]");
    return found.filter(([, decision]) => Object.hasOwn(GLYPHS, decision));
  } catch { return []; } // no storage, or something else in it
}

function mark(item, decision) {
  if (!item?.id) return;
  if (marks.get(item.id) === decision || decision === null) marks.delete(item.id);
  else marks.set(item.id, decision);
  if (!marks.has(item.id)) notes.delete(item.id);
  saveMarks();
  for (const [index, tile] of tiles) if (shown[index] === item) showMark(tile.lastChild, item);
  if (opened) showDecision();
  if (comparing) compare(opened);
}

function annotate(item, text) {
  if (!item?.id || !marks.has(item.id)) return;
  if (text.trim()) notes.set(item.id, text.trim());
  else notes.delete(item.id);
  saveMarks();
}

function decided() { // rows of a table: id, decision, note
  return [...marks].map(([id, decision]) => [id, decision, notes.get(id) ?? ""]);
}

function saveMarks() {
  try { localStorage.setItem(STORE, JSON.stringify(decided())); } catch { /* this page only */ }
  const count = (decision) => [...marks.values()].filter((one) => one === decision).length;
  byId("curation").hidden = marks.size === 0;
  byId("marked").textContent = `By hand: ${formatCount(count("keep"))} kept, ${formatCount(count("reject"))} rejected`;
}

function markButton(item) {
  const button = element("button", undefined, "mark-button");
  button.type = "button";
  button.tabIndex = -1; // the keys K and X do the same
  showMark(button, item);
  const next = { undefined: "keep", keep: "reject", reject: null };
  button.addEventListener("click", (event) => { event.stopPropagation(); mark(item, next[marks.get(item.id)]); });
  return button;
}

function showMark(button, item) {
  const decision = marks.get(item.id);
  button.textContent = GLYPHS[decision] ?? "";
  button.dataset.decision = decision ?? "";
  button.setAttribute("aria-label", decision ? `Marked: ${decision}` : "Mark");
}

const csvField = (text) => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;

const noFormula = (text) => (/^'*[=+\-@\t\r]/.test(text) ? `'${text}` : text); // as `csv_cell`

function curationTable() { // what `rudalle-flows curate` reads
  const lines = decided().map((line) => line.map(noFormula)).sort();
  return [["image_id", "decision", "note"], ...lines].map((line) => line.map(csvField).join(",") + "\n").join("");
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([curationTable()], { type: "text/csv" }));
  link.download = "curation.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// --- the viewer of a single image

function show(item) {
  [opened, comparing] = [item, false];
  byId("viewer-image").className = "";
  byId("compare").setAttribute("aria-pressed", "false");
  byId("viewer-image").replaceChildren(item.source || item.thumb ? viewerImage(item) : frame(item));
  byId("viewer-caption").textContent = item.caption || "(no text)";
  byId("viewer-translation").textContent = item.translation ?? "";
  byId("viewer-reason").replaceChildren(...(item.reason ? reasonNodes(item) : []));
  byId("position").textContent = `${formatCount(shown.indexOf(item) + 1)} of ${formatCount(shown.length)}`;
  const siblings = siblingsOf(item);
  byId("siblings-part").hidden = byId("compare").hidden = siblings.length < 2;
  byId("siblings").replaceChildren(...siblings.map(sibling));
  const similar = (item.similar ?? []).map((id) => byImage.get(id)).filter(Boolean);
  byId("similar-part").hidden = similar.length === 0;
  byId("similar").replaceChildren(...similar.map(sibling));
  byId("replay-part").hidden = !item.id;
  byId("replay").textContent = item.id ? data.replay.replace(/\{id\}$/, () => shellWord(item.id)) : "";
  const facts = [...Object.entries(item.columns ?? {}), ...Object.entries(item.details)];
  byId("details").replaceChildren(...facts.map(([name, value]) => factRow(name.replaceAll("_", " "), value)));
  byId("copy").textContent = "Copy";
  showDecision();
  if (!viewer.open) viewer.showModal();
  viewer.scrollTop = viewer.querySelector(".info").scrollTop = 0;
  writeAddress();
}

const siblingsOf = (item) => [...((item.prompt && byPrompt.get(item.prompt)) || [])].sort(ORDERS.best);

function showDecision() {
  byId("decision").hidden = !opened.id;
  for (const decision of ["keep", "reject"])
    byId(decision).setAttribute("aria-pressed", String(marks.get(opened.id) === decision));
  byId("note-part").hidden = !marks.has(opened.id);
  byId("note").value = notes.get(opened.id) ?? "";
}

function compare(item) { // all candidates of a prompt, side by side
  if (siblingsOf(item).length < 2) return;
  comparing = true;
  byId("compare").setAttribute("aria-pressed", "true");
  byId("viewer-image").className = "side-by-side";
  byId("viewer-image").replaceChildren(...siblingsOf(item).map((one) => {
    const figure = element("figure", undefined, one.reason ? "rejected" : ""), caption = element("figcaption");
    const button = element("button");
    button.type = "button";
    button.append(frame(one));
    button.setAttribute("aria-label", one.id ?? one.key);
    button.addEventListener("click", () => show(one));
    if (hasScore(one)) caption.append(element("b", one.score.toFixed(3)), " ");
    caption.append(one.reason ? element("i", reasonLabel(one.reason)) : "published");
    figure.append(button, caption);
    if (one.id) figure.append(markButton(one));
    return figure;
  }));
  writeAddress();
}

function viewerImage(item) {
  const image = document.createElement("img");
  image.alt = item.caption;
  image.src = item.source ?? item.thumb;
  return image;
}

function reasonNodes(item) {
  const explanation = known(item.reason)[1];
  return [element("i", `Rejected: ${reasonLabel(item.reason)}`), item.detail ? ` (${item.detail})` : `. ${explanation}`];
}

function factRow(name, value) {
  const row = element("div");
  row.append(element("dt", name), element("dd", String(value)));
  return row;
}

function sibling(item) {
  const row = element("li", undefined, item.reason ? "rejected" : ""), button = element("button");
  button.type = "button";
  button.title = item.id ?? "";
  if (item === opened) row.setAttribute("aria-current", "true");
  button.append(frame(item), hasScore(item) ? item.score.toFixed(3) : "");
  button.addEventListener("click", () => show(item));
  row.append(button);
  return row;
}

function showNeighbour(offset) {
  const index = shown.indexOf(opened) + offset;
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

function addRows(added) {
  for (const item of added) {
    item.position = all.length;
    item.key = item.id ?? `row-${item.position}`;
    const own = Object.values(item.columns ?? {});
    const searchable = [item.caption, item.translation, item.id, item.prompt, item.seed, item.model, item.reason, ...own];
    item.words = fold(searchable.filter(Boolean).join(" "));
    if (item.prompt && byPrompt.has(item.prompt)) byPrompt.get(item.prompt).push(item);
    else if (item.prompt) byPrompt.set(item.prompt, [item]);
    if (item.id) byImage.set(item.id, item);
    all.push(item);
  }
}

function shareColumns() { // a rejected candidate has the columns of its prompt, too
  for (const items of byPrompt.values()) {
    const known = items.find((item) => item.columns)?.columns;
    if (!known) continue;
    for (const item of items.filter((one) => !one.columns)) {
      item.columns = known;
      item.words += fold([" ", ...Object.values(known)].join(" "));
    }
  }
}

function loadScript(source) {
  return new Promise((resolve) => {
    const script = document.createElement("script");
    script.src = source;
    script.async = false; // loaded side by side, but run in order
    script.onload = script.onerror = resolve;
    document.head.append(script);
  });
}

function drawHistogram() {
  const scored = all.filter(hasScore), values = scored.map((item) => item.score);
  const lowest = values.reduce((a, b) => Math.min(a, b), Infinity), highest = values.reduce((a, b) => Math.max(a, b), -Infinity);
  document.querySelector(".score").hidden = !(highest > lowest);
  if (!(highest > lowest)) return;
  scores = [lowest, highest];
  const bins = Array.from({ length: 48 }, () => [0, 0]);
  for (const item of scored) bins[Math.min(47, Math.floor(((item.score - lowest) / (highest - lowest)) * 48))][item.reason ? 1 : 0]++;
  const tallest = Math.max(...bins.map(([kept, rejected]) => kept + rejected));
  byId("histogram").replaceChildren(...bins.flatMap(([kept, rejected], x) => [bar(x, 0, (12 * kept) / tallest), bar(x, (12 * kept) / tallest, (12 * rejected) / tallest, "rejected")]));
}

function bar(x, base, height, className) {
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const values = { x: x + 0.1, y: 12 - base - height, width: 0.8, height, fill: "currentColor" };
  for (const [name, value] of Object.entries(values)) rect.setAttribute(name, value);
  if (className) rect.setAttribute("class", className);
  return rect;
}

function fillStatusMenu() {
  const select = byId("status"), choices = [["published", "published"], ["rejected", "rejected"]];
  for (const reason of Object.keys(data.totals)) choices.push([`reason:${reason}`, `  ${reasonLabel(reason).toLowerCase()} (${formatCount(data.totals[reason])})`]);
  choices.push(["all", "all"], ["marked", "marked by hand"]);
  for (const [value, text] of choices) addOption(select, value, text);
}

function addOption(select, value, text) {
  const option = element("option", text);
  option.value = value;
  select.append(option);
}

function fillGroupMenu() { // a column is offered if it divides the images into some groups, not into single ones
  const values = new Map();
  for (const { columns: own } of all)
    for (const [name, value] of Object.entries(own ?? {})) values.set(name, (values.get(name) ?? new Set()).add(value));
  for (const [name, found] of values)
    if (found.size > 1 && found.size <= Math.max(50, all.length / 8)) addOption(byId("group"), `column:${name}`, name);
}

// --- the address: an image, or filters as name=value, so that a view can be shared

const FILTERS = { q: "search", show: "status", sort: "sort", group: "group" };
const usual = {};

function writeAddress() {
  const parts = new URLSearchParams();
  for (const [name, id] of Object.entries(FILTERS)) if (byId(id).value !== usual[name]) parts.set(name, byId(id).value);
  if (chosenScore() !== null) parts.set("min", String(chosenScore()));
  if (opened && (comparing || parts.size)) parts.set(comparing ? "compare" : "image", opened.key);
  const hash = parts.size ? parts.toString() : opened ? encodeURIComponent(opened.key) : "";
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

function readAddress() {
  const hash = location.hash.slice(1), parts = new URLSearchParams(hash.includes("=") ? hash : "");
  for (const [name, id] of Object.entries(FILTERS)) setChoice(byId(id), parts.get(name) ?? usual[name]);
  const least = parts.has("min") ? Number(parts.get("min")) : NaN, [lowest, highest] = scores;
  byId("score").value = least > lowest ? Math.ceil(((least - lowest) / (highest - lowest)) * STEPS - 1e-6) : 0;
  applyFilters();
  let key = parts.get("compare") ?? parts.get("image");
  try { key ??= hash.includes("=") ? null : decodeURIComponent(hash); } catch { return; }
  const item = key && all.find((one) => one.key === key);
  if (!item) return;
  show(item);
  if (parts.has("compare")) compare(item);
}

function filtersInUse() { // but the search, which is always on the screen
  const changed = Object.entries(FILTERS).filter(([name, id]) => id !== "search" && byId(id).value !== usual[name]);
  return changed.length + (chosenScore() === null ? 0 : 1);
}

function setChoice(control, value) {
  if (!control.options || [...control.options].some((option) => option.value === value)) control.value = value;
}

async function start() {
  for (const [value, name] of data.facts) byId("facts").append(factRow(name, value));
  byId("models").textContent = data.models.join("  ·  ");
  fillStatusMenu();
  for (const [name, id] of Object.entries(FILTERS)) usual[name] = byId(id).value;
  addRows(data.rows);
  globalThis.galleryRows = addRows;
  if (all.length) applyFilters();
  for (const loaded of data.chunks.map(loadScript)) {
    await loaded;
    if (all.length && !shown.length) applyFilters();
  }
  shareColumns();
  fillGroupMenu();
  drawHistogram();
  saveMarks();
  readAddress();
}

// --- keyboard and pointer

function onGridKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -shown.length, End: shown.length };
  const vertical = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (vertical) focusOn(verticalNeighbour(vertical));
  else if (moves[event.key]) focusOn(current + moves[event.key]);
  else if (!decide(event, shown[current])) return;
  event.preventDefault();
}

function decide(event, item) {
  const decision = { k: "keep", x: "reject" }[event.key];
  if (decision) mark(item, decision);
  else if (event.key === "c" && item) { show(item); compare(item); }
  return Boolean(decision) || event.key === "c";
}

grid.addEventListener("keydown", onGridKey);
grid.addEventListener("focusin", (event) => {
  const index = event.target.dataset.index;
  if (index === undefined || Number(index) === current || opened) return; // the viewer gives focus back
  if (tiles.has(current)) tiles.get(current).firstChild.tabIndex = -1;
  current = Number(index);
  event.target.tabIndex = 0;
});
grid.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  current = Number(link.dataset.index);
  show(shown[current]);
});
viewer.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input")) return;
  if (event.key === "ArrowLeft") showNeighbour(-1);
  else if (event.key === "ArrowRight") showNeighbour(1);
  else if (event.key === "c" && comparing) show(opened);
  else decide(event, opened);
});
viewer.addEventListener("close", () => {
  [opened, comparing] = [null, false];
  writeAddress();
  focusOn(current);
});
byId("previous").addEventListener("click", () => showNeighbour(-1));
byId("next").addEventListener("click", () => showNeighbour(1));
byId("close").addEventListener("click", () => viewer.close());
byId("copy").addEventListener("click", copy);
byId("keep").addEventListener("click", () => mark(opened, "keep"));
byId("reject").addEventListener("click", () => mark(opened, "reject"));
byId("note").addEventListener("input", (event) => annotate(opened, event.target.value));
byId("compare").addEventListener("click", () => (comparing ? show(opened) : compare(opened)));
byId("download").addEventListener("click", download);
byId("clear").addEventListener("click", () => { marks.clear(); notes.clear(); saveMarks(); applyFilters(); });
byId("controls").addEventListener("input", () => { applyFilters(); writeAddress(); });
addEventListener("hashchange", () => { if (viewer.open) viewer.close(); readAddress(); });
byId("more").addEventListener("click", () => {
  const open = byId("controls").classList.toggle("open");
  byId("more").setAttribute("aria-expanded", String(open));
});
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("reset").addEventListener("click", () => { byId("controls").reset(); applyFilters(); writeAddress(); });
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || viewer.open || event.target.matches("input, select")) return;
  event.preventDefault();
  byId("search").focus();
});
addEventListener("scroll", () => { if (!scheduled) { scheduled = true; requestAnimationFrame(renderTiles); } }, { passive: true });
addEventListener("resize", renderAllTiles);
start();
