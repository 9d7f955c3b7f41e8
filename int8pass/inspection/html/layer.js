"use strict";
// The chosen layer: what became of it, its part of the graph before and after, and its plots.

function showLayer(data, row) {
  byId("layer-title").textContent = layerName(row);
  const body = byId("layer-body");
  const drawings = row.before && row.graph < data.graphs.length ? layerDrawings(data.graphs[row.graph], row) : [];
  const plots = [];
  if (row.snr_db != null) plots.push(errorPlot(row, data.rows));
  if (row.schemes.length) plots.push(schemesPlot(row, data.scheme));
  if (row.peaks?.length) plots.push(peaksPlot(row, data.threshold, data.profile));
  if (row.activations) plots.push(levelsPlot("Activations", row.activations, row.outlier_values));
  if (row.weights) plots.push(levelsPlot("Weights", row.weights, 0));
  body.replaceChildren(
    layerFacts(row, data.file),
    el("div", { class: "pair" }, ...drawings),
    el("div", { class: "pair" }, ...plots),
  );
  drawings.forEach((figure) => figure.fit());
}

function layerFacts(row, file) {
  const facts = [
    ["decision", decision(row)],
    ["weight", `${row.weight || row.operation} ${shape(row)} ${row.dtype}`],
    ["outlier columns", row.rewritten ? (row.outlier_columns?.length ?? "in each call") : "–"],
    ...(row.missed_columns.length ? [["missed by the profile", listed(row.missed_columns)]] : []),
    ...(file && row.snr_db == null ? [] : [["SNR", row.snr_db == null ? (row.exact ? "exact" : "–") : `${row.snr_db.toFixed(1)} dB`]]),
    file
      ? ["MB float, in the file", [row.bytes_before, row.bytes_after].map(megabytes).join(", ")]
      : ["MB float, after, peak", [row.bytes_before, row.bytes_after, row.bytes_peak].map(megabytes).join(", ")],
    ...timingFacts(row.timing),
  ];
  return el("dl", {}, ...facts.map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: value, style: "font-size: 14px; overflow-wrap: anywhere" }))));
}

function timingFacts(timing) {
  if (!timing) return [];
  const microseconds = (seconds) => (seconds == null ? "fused" : (1e6 * seconds).toFixed(0));
  return [
    ["µs int8, float", [timing.int8, timing.float].map(microseconds).join(", ")],
    ["µs quantize, GEMM, dequantize, outliers", [timing.quantize, timing.gemm, timing.dequantize, timing.outliers].map(microseconds).join(", ")],
  ];
}

function layerDrawings(graph, row) {
  const known = new Map(graph.nodes.map((node) => [node[0], node]));
  return shownStages(graph).map(([title, stage]) => {
    const part = title === "Before" ? row.before : row.after;
    const present = new Map(stage.nodes.map((number) => [graph.nodes[number][0], graph.nodes[number]]));
    const own = part.own.map((name) => drawnNode(present.get(name) || known.get(name)));
    const beside = part.beside.map((name) => drawnNode(present.get(name) || known.get(name), "beside"));
    const ids = new Set([...part.own, ...part.beside]);
    const isOwn = new Set(part.own);
    const edges = [];
    for (const name of ids) {
      for (const input of present.get(name)[4]) {
        if (ids.has(input) && (isOwn.has(name) || isOwn.has(input))) edges.push([input, name]);
      }
    }
    return drawing(title, [...own, ...beside], edges);
  });
}
