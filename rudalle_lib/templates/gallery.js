"use strict";
// Every text goes in through textContent, so a prompt can never become markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function element(name, text, className) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function figures(score, seed) {
  const line = element("div", undefined, "figures");
  if (score !== null) line.append(element("b", score.toFixed(3)));
  if (seed !== null) line.append(element("span", "seed " + seed));
  return line;
}

function picture(item, lazyFrom, index) {
  const image = document.createElement("img");
  image.src = item.source;
  image.alt = item.caption;
  image.title = item.image_id;
  image.width = item.width;
  image.height = item.height;
  if (index >= lazyFrom) image.loading = "lazy";
  return image;
}

function publishedTile(item, index) {
  const tile = element("li");
  const link = document.createElement("a");
  link.href = item.source;
  link.append(picture(item, 24, index));
  tile.append(link, element("p", item.caption));
  if (item.translation) tile.append(element("p", item.translation, "quiet"));
  tile.append(figures(item.score, item.seed));
  return tile;
}

function rejectedTile(item, index) {
  const tile = element("li");
  tile.append(picture(item, 0, index), element("p", item.caption), figures(item.score, null));
  return tile;
}

function rejectedRow(item) {
  const row = element("li");
  const text = item.caption === "" ? "(no text)" : item.caption;
  row.append(element("p", text), element("p", item.detail || ""));
  return row;
}

function list(className, items, draw) {
  const node = element("ul", undefined, className);
  node.append(...items.map(draw));
  return node;
}

for (const [value, label] of data.facts) {
  const pair = element("div");
  pair.append(element("dt", label), element("dd", value));
  byId("facts").append(pair);
}
byId("models").textContent = data.models.join("  ·  ");
byId("published-count").textContent = data.published_total;
byId("published").append(...data.published.map(publishedTile));
if (data.published.length < data.published_total)
  byId("published-note").textContent = `The first ${data.published.length} of ${data.published_total} are shown.`;
byId("rejected-count").textContent = data.rejected_total;
for (const group of data.rejected) {
  const heading = element("h3", group.label);
  heading.append(element("span", String(group.total)));
  const shown = group.items.length < group.total ? ` The first ${group.items.length} are shown.` : "";
  byId("rejected").append(heading, element("p", group.about + shown, "about"));
  const drawn = group.items.filter((item) => item.source);
  if (drawn.length) byId("rejected").append(list("grid small", drawn, rejectedTile));
  const plain = group.items.filter((item) => !item.source);
  if (plain.length) byId("rejected").append(list("rows", plain, rejectedRow));
}
if (!data.rejected.length) byId("rejected").append(element("p", "Nothing was set aside.", "none"));
