"use strict";
// The text of every stage, and what each pass changed.

const CONTEXT = 2; // lines around a change

function startStages(graphs) {
  if (!graphs.length) {
    byId("stages").hidden = true;
    return;
  }
  fillSelect(byId("stage-graph"), graphs.map((_, number) => `graph ${number}`));
  fillSelect(byId("stage-name"), graphs[0].stages.map((stage) => stage.name));
  byId("stage-mode").closest("label").hidden = graphs[0].stages.length < 2;
  const rewrite = graphs[0].stages.findIndex((stage) => stage.name === "linear_to_int8_mixed");
  byId("stage-name").value = String(Math.max(rewrite, 0));
  const show = () => {
    const graph = graphs[Number(byId("stage-graph").value || 0)];
    const number = Number(byId("stage-name").value || 0);
    const asDiff = byId("stage-mode").value === "diff" && number > 0;
    byId("stage-text").replaceChildren(...(asDiff ? diffLines(graph, number) : textLines(graph, number)));
    const stage = graph.stages[number];
    const changed = stage.changes.length === 1 ? "1 place changed" : `${stage.changes.length} places changed`;
    byId("stage-status").textContent = number ? `${stage.nodes.length} lines, ${changed}` : `${stage.nodes.length} lines`;
  };
  for (const id of ["stage-graph", "stage-name", "stage-mode"]) byId(id).addEventListener("change", show);
  show();
}

const nodeText = (graph, number) => graph.nodes[number][1];

function textLines(graph, number) {
  return [graph.stages[number].nodes.map((node) => nodeText(graph, node)).join("\n")];
}

function diffLines(graph, number) {
  const [before, after] = [graph.stages[number - 1].nodes, graph.stages[number].nodes];
  const lines = [];
  let shownTo = 0; // of the stage before
  const same = (from, to) => before.slice(from, to).forEach((node) => lines.push(el("span", { text: "  " + nodeText(graph, node) })));
  for (const [i1, i2, j1, j2] of graph.stages[number].changes) {
    const tail = Math.min(shownTo + (lines.length ? CONTEXT : 0), i1);
    same(shownTo, tail);
    const head = Math.max(tail, i1 - CONTEXT);
    if (head > tail) lines.push(el("span", { class: "gap", text: `… ${head - tail} lines` }));
    same(head, i1);
    for (const node of before.slice(i1, i2)) lines.push(el("span", { class: "removed", text: "- " + nodeText(graph, node) }));
    for (const node of after.slice(j1, j2)) lines.push(el("span", { class: "added", text: "+ " + nodeText(graph, node) }));
    shownTo = i2;
  }
  if (!lines.length) return [el("span", { class: "gap", text: "this pass changed nothing" })];
  const end = Math.min(shownTo + CONTEXT, before.length);
  same(shownTo, end);
  if (end < before.length) lines.push(el("span", { class: "gap", text: `… ${before.length - end} lines` }));
  return lines;
}
