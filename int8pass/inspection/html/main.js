"use strict";
// Puts the page together from the data inside it.

(() => {
  const data = JSON.parse(byId("data").textContent);
  const totals = data.totals;
  nameLayers(data.rows);
  const inEachCall = data.rows.some((row) => row.outlier_columns == null);
  const facts = [
    ["Linears", totals.linears],
    ["rewritten to int8", totals.rewritten],
    ["skipped", totals.skipped],
    inEachCall ? ["outlier columns found", "in each call"] : ["with outlier columns", totals.with_outliers],
    ["MB before", megabytes(totals.bytes_before)],
    [data.file ? "MB in the file" : "MB after", megabytes(totals.bytes_after)],
    ...(data.file ? [] : [["MB at the peak", megabytes(totals.bytes_peak)]]),
    ["scheme", data.scheme],
    ["threshold", `${data.threshold}, by ${data.profile ? "profile" : data.outliers}`],
  ];
  byId("totals").append(...facts.map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: value }))));
  if (data.inputs) byId("skipped").append(el("li", { text: `run in ONNX Runtime on ${data.inputs}` }));
  if (data.converted) byId("skipped").append(el("li", { text: data.converted }));
  byId("skipped").append(...Object.entries(totals.reasons).map(([reason, count]) => el("li", { text: `skipped ${count}: ${reason}` })));
  if (data.slower_in_int8.length) {
    const saved = (1e3 * data.saved_by_skipping).toFixed(2);
    byId("skipped").append(el("li", { text: `faster in float, by ${saved} ms: skip_modules=[${data.slower_in_int8.map((name) => JSON.stringify(name)).join(", ")}]` }));
  }
  byId("versions").textContent = `int8pass ${data.versions.int8pass}, torch ${data.versions.torch}`;
  startTheme();
  const mark = startTable(data, choose);
  function choose(number) {
    mark(number);
    showLayer(data, data.rows[number]);
  }
  if (data.rows.length) {
    const worst = d3.least(data.rows.keys(), (number) => data.rows[number].snr_db ?? Infinity);
    choose(worst ?? 0);
  } else byId("layer").hidden = true;
  startModel(data);
  startStages(data.graphs);
})();
