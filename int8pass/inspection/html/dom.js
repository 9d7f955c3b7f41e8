"use strict";
// Making elements, and writing numbers.

/** An element with attributes and children; `text`, `on...` and `class` are what they say. */
function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") made.textContent = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

const byId = (id) => document.getElementById(id);
const megabytes = (bytes) => (bytes / 1e6).toFixed(2);
const shortNumber = (value) => (value === 0 ? "0" : Number(value.toPrecision(3)).toString());
const layerName = (row) => row.name;
const shape = (row) => (row.weight_shape || []).join("×");
const decision = (row) => (row.rewritten ? "int8" : "skipped: " + row.reason);

/** A layer goes by its module, and by the view of its weight where its module has several. */
function nameLayers(rows) {
  const views = d3.rollup(rows, (same) => new Set(same.map((row) => row.view)).size, (row) => row.module);
  for (const row of rows) row.name = (row.module || "(root)") + (views.get(row.module) > 1 ? row.view : "");
}

function decibels(row) {
  if (row.exact) return "exact";
  return row.snr_db == null ? "" : row.snr_db.toFixed(1);
}

function fillSelect(select, names) {
  select.replaceChildren(...names.map((name, number) => el("option", { value: number, text: name })));
  select.closest("label").hidden = names.length < 2;
}
