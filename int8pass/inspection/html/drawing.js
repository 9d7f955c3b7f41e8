"use strict";
// Drawing a graph: dagre places the nodes, d3 zooms; mouse, touch and keyboard do the same things.

const NODE_HEIGHT = 36;
const CHARACTER = 6.8; // pixels of a character of the 11 px monospaced font
const LONGEST_NAME = 22;
const ZOOM_STEP = 1.4;
const MOVE_STEP = 60;
const INT8_OPS = /^(int8pass\.|(QuantizeLinear|DequantizeLinear|MatMulInteger)\()/; // of a graph, and of an ONNX file

/**
 * A figure with a zoomable drawing.
 * nodes: [{ id, lines, classes, label, parent, press }]; edges: [[from, to]]; clusters: [{ id, label, parent, press }].
 */
function drawing(title, nodes, edges, clusters = []) {
  const layout = placed(nodes, edges, clusters);
  const { width, height } = layout.graph();
  const svg = d3.create("svg").attr("role", "group").attr("tabindex", 0)
    .attr("aria-label", `${title}: ${nodes.length} nodes. Plus and minus zoom, arrow keys move, 0 shows all.`);
  const marker = "arrow-" + (drawing.count = (drawing.count || 0) + 1);
  svg.append("defs").append("marker").attr("id", marker).attr("viewBox", "0 0 8 8").attr("refX", 7).attr("refY", 4)
    .attr("markerWidth", 7).attr("markerHeight", 7).attr("orient", "auto").append("path").attr("class", "arrow").attr("d", "M0 0 L8 4 L0 8 z");
  const canvas = svg.append("g");
  for (const cluster of clusters) drawCluster(canvas, cluster, layout.node(cluster.id));
  const line = d3.line((point) => point.x, (point) => point.y).curve(d3.curveBasis);
  canvas.selectAll("path").data(layout.edges()).join("path").attr("class", "edge")
    .attr("d", (edge) => line(layout.edge(edge).points)).attr("marker-end", `url(#${marker})`);
  for (const node of nodes) drawNode(canvas, node, layout.node(node.id));

  const zoom = d3.zoom().scaleExtent([0.02, 6]).on("zoom", (event) => canvas.attr("transform", event.transform));
  svg.call(zoom).on("dblclick.zoom", null);
  function fit() {
    const box = svg.node().getBoundingClientRect();
    if (!box.width || !width) return;
    const scale = Math.min(1.2, box.width / (width + 20), box.height / (height + 20));
    const move = d3.zoomIdentity.translate((box.width - width * scale) / 2, (box.height - height * scale) / 2).scale(scale);
    svg.call(zoom.transform, move);
  }
  const actions = {
    "+": () => svg.call(zoom.scaleBy, ZOOM_STEP),
    "=": () => svg.call(zoom.scaleBy, ZOOM_STEP),
    "-": () => svg.call(zoom.scaleBy, 1 / ZOOM_STEP),
    0: fit,
    ArrowLeft: () => svg.call(zoom.translateBy, MOVE_STEP / d3.zoomTransform(svg.node()).k, 0),
    ArrowRight: () => svg.call(zoom.translateBy, -MOVE_STEP / d3.zoomTransform(svg.node()).k, 0),
    ArrowUp: () => svg.call(zoom.translateBy, 0, MOVE_STEP / d3.zoomTransform(svg.node()).k),
    ArrowDown: () => svg.call(zoom.translateBy, 0, -MOVE_STEP / d3.zoomTransform(svg.node()).k),
  };
  svg.on("keydown", (event) => {
    if (!actions[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    actions[event.key]();
  });
  const button = (key, text, label) =>
    el("button", { type: "button", text, "aria-label": `${label}: ${title}`, onclick: actions[key] });
  const bar = el("div", { class: "zoom" }, button("+", "+", "Zoom in"), button("-", "−", "Zoom out"), button(0, "Fit", "Show all"));
  const figure = el("figure", { class: "drawing" }, el("h3", { text: title }), bar, svg.node());
  figure.fit = fit;
  new ResizeObserver(fit).observe(svg.node());
  return figure;
}

function placed(nodes, edges, clusters) {
  const layout = new dagre.graphlib.Graph({ compound: clusters.length > 0 });
  layout.setGraph({ ranksep: 34, nodesep: 16, marginx: 8, marginy: 8 }).setDefaultEdgeLabel(() => ({}));
  for (const cluster of clusters) layout.setNode(cluster.id, {});
  for (const node of nodes) {
    layout.setNode(node.id, { width: Math.max(...node.lines.map((text) => text.length)) * CHARACTER + 18, height: NODE_HEIGHT });
  }
  for (const part of clusters.length ? [...clusters, ...nodes] : []) {
    if (part.parent != null) layout.setParent(part.id, part.parent);
  }
  for (const [from, to] of edges) layout.setEdge(from, to);
  dagre.layout(layout);
  return layout;
}

function drawNode(canvas, node, box) {
  const group = canvas.append("g").attr("class", `node ${node.classes}`).attr("transform", `translate(${box.x},${box.y})`)
    .attr("aria-label", node.label).attr("role", node.press ? "button" : "img");
  pressable(group, node.press);
  group.append("title").text(node.label);
  group.append("rect").attr("x", -box.width / 2).attr("y", -NODE_HEIGHT / 2).attr("width", box.width)
    .attr("height", NODE_HEIGHT).attr("rx", 5);
  node.lines.filter(Boolean).forEach((text, number, all) => {
    group.append("text").attr("class", number ? "type" : "name").attr("text-anchor", "middle")
      .attr("y", all.length > 1 ? number * 14 - 3 : 4).text(text);
  });
}

function drawCluster(canvas, cluster, box) {
  const group = canvas.append("g").attr("class", "cluster").attr("role", "button").attr("aria-expanded", "true")
    .attr("aria-label", `module ${cluster.label}, open`);
  pressable(group, cluster.press);
  group.append("rect").attr("x", box.x - box.width / 2).attr("y", box.y - box.height / 2).attr("width", box.width)
    .attr("height", box.height).attr("rx", 8);
  group.append("text").attr("x", box.x - box.width / 2 + 6).attr("y", box.y - box.height / 2 + 13).text(`− ${cluster.label}`);
}

function pressable(group, press) {
  group.attr("tabindex", press ? 0 : null);
  if (!press) return;
  group.classed("pressable", true).on("click", press).on("keydown.press", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    event.stopPropagation();
    press();
  });
}

/** A node of the data, [name, text, kind, module, inputs], as a node to draw. */
function drawnNode(node, extra = "") {
  const [name, text, kind] = node;
  const [left, right] = splitOnce(text, " = ");
  const [type = "", more] = splitOnce(splitOnce(left, " : ")[1] || "", ", %"); // an operator of a file may have several results
  const operation = kind === "call" ? splitOnce(right, "(")[0].replace("int8pass.", "") : kind === "output" ? "output" : kind === "weight" ? right.replaceAll("'", "") : name;
  const classes = `${kind} ${INT8_OPS.test(right) ? "int8" : ""} ${extra}`;
  return { id: name, lines: [shortened(operation), more ? `${type}, …` : type], classes, label: text };
}

/** The end of a long name says more than its start. */
function shortened(text) {
  const [first, last] = [text.split(" ").slice(0, -1).join(" "), text.split(" ").at(-1)];
  return last.length > LONGEST_NAME ? `${first} …${last.slice(-LONGEST_NAME)}`.trim() : text;
}

function splitOnce(text, mark) {
  const place = text.indexOf(mark);
  return place < 0 ? [text] : [text.slice(0, place), text.slice(place + mark.length)];
}
