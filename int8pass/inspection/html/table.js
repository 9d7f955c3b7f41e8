"use strict";
// The layer table: sorted by a column's heading, filtered, and one layer chosen.

const COLUMNS = [
  { name: "layer", value: (row) => layerName(row) },
  { name: "weight", value: (row) => (row.weight_shape || []).reduce((a, b) => a * b, 1), text: shape },
  { name: "dtype", value: (row) => row.dtype },
  { name: "decision", value: decision },
  { name: "outlier columns", value: (row) => row.outlier_columns?.length, text: outlierText },
];
const bytesColumn = (name, field) => ({ name, value: (row) => row[field], text: (row) => megabytes(row[field]), number: true });
const MODEL_COLUMNS = [
  { name: "SNR dB", value: (row) => (row.exact ? Infinity : row.snr_db), text: decibels, number: true },
  bytesColumn("MB float", "bytes_before"),
  bytesColumn("MB after", "bytes_after"),
];
const FILE_COLUMNS = [MODEL_COLUMNS[0], bytesColumn("MB float", "bytes_before"), bytesColumn("MB in the file", "bytes_after")];
const OUTLIERS_SHOWN = 8;

function outlierText(row) {
  if (!row.rewritten) return "";
  const columns = row.outlier_columns;
  if (columns == null) return "in each call";
  const missed = row.missed_columns.length ? ` (missed: ${listed(row.missed_columns)})` : "";
  return (columns.length ? `${columns.length}: ${listed(columns)}` : "none") + missed;
}

function listed(columns) {
  return columns.slice(0, OUTLIERS_SHOWN).join(", ") + (columns.length > OUTLIERS_SHOWN ? ", …" : "");
}

function startTable(data, choose) {
  const rows = data.rows;
  const own = (data.file ? FILE_COLUMNS : MODEL_COLUMNS).filter((column) => column !== MODEL_COLUMNS[0] || !data.file || rows.some((row) => row.snr_db != null));
  const columns = COLUMNS.concat(own, schemeColumns(rows), timeColumns(rows));
  const table = byId("layer-table");
  const lines = rows.map((row, number) => tableLine(columns, row, number, choose));
  const order = rows.map((_, number) => number);

  function sortBy(column, heading) {
    const descending = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const sign = descending ? -1 : 1;
    order.sort((a, b) => {
      const [left, right] = [column.value(rows[a]), column.value(rows[b])];
      if (left == null || right == null) return (left == null) - (right == null) || a - b; // unknown ones last
      return sign * d3.ascending(left, right) || a - b;
    });
    show();
  }

  function show() {
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = byId("decision").value;
    const onlyOutliers = byId("with-outliers").checked;
    const kept = order.filter((number) => {
      const row = rows[number];
      const text = `${layerName(row)} ${decision(row)} ${shape(row)} ${row.dtype}`.toLowerCase();
      return words.every((word) => text.includes(word)) && decision(row).startsWith(wanted)
        && (!onlyOutliers || row.outlier_columns?.length > 0);
    });
    table.tBodies[0].replaceChildren(...kept.map((number) => lines[number]));
    byId("shown").textContent = `${kept.length} of ${rows.length} layers`;
  }

  const headings = columns.map((column) => {
    const heading = el("th", { scope: "col" });
    heading.append(el("button", { type: "button", text: column.name, onclick: () => sortBy(column, heading) }));
    if (column.number) heading.className = "number";
    return heading;
  });
  table.tHead.replaceChildren(el("tr", {}, ...headings));
  byId("filter").addEventListener("input", show);
  for (const id of ["decision", "with-outliers"]) byId(id).addEventListener("change", show);
  table.tBodies[0].addEventListener("keydown", moveByArrows);
  show();
  return (number) => lines.forEach((line, other) => line.setAttribute("aria-current", other === number));
}

const ratioOf = (each) => (each.exact ? Infinity : each.snr_db);

/** The scheme with the smallest error, and how far it is from the one that the report is of. */
function schemeColumns(rows) {
  if (!rows.some((row) => row.schemes.length)) return [];
  const best = (row) => d3.greatest(row.schemes, ratioOf);
  const gain = (row) => (best(row) ? ratioOf(best(row)) - ratioOf(row) : null);
  return [
    { name: "best scheme", value: (row) => best(row)?.scheme },
    { name: "gain dB", value: gain, text: (row) => (gain(row) == null || Number.isNaN(gain(row)) ? "" : gain(row).toFixed(1)), number: true },
  ];
}

function timeColumns(rows) {
  if (!rows.some((row) => row.timing)) return [];
  const total = d3.sum(rows, (row) => (row.timing ? row.timing.int8 : 0));
  const share = (row) => (row.timing ? (100 * row.timing.int8) / total : null);
  const ratio = (row) => (row.timing ? row.timing.int8 / row.timing.float : null);
  return [
    { name: "time share %", value: share, text: (row) => (row.timing ? share(row).toFixed(1) : ""), number: true },
    { name: "time/float", value: ratio, text: (row) => (row.timing ? ratio(row).toFixed(2) : ""), number: true },
  ];
}

function tableLine(columns, row, number, choose) {
  const cells = columns.slice(1).map((column) => {
    const cell = el("td", { text: (column.text || column.value)(row) });
    if (column.number) cell.className = "number";
    else if (column.name === "outlier columns") cell.className = "columns";
    else if (column.name === "decision" && !row.rewritten) cell.className = "skipped";
    return cell;
  });
  const button = el("button", { type: "button", text: layerName(row), onclick: () => choose(number) });
  return el("tr", {}, el("th", { scope: "row" }, button), ...cells);
}

function moveByArrows(event) {
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const next = step && event.target.closest("tr")?.[step];
  if (!next) return;
  event.preventDefault();
  next.querySelector("button").focus();
}
