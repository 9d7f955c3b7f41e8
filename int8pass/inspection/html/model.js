"use strict";
// The whole graph before and after, folded by module.

const MOST_NODES = 600; // of one drawing: more take seconds to place, and nobody can read them

function startModel(data) {
  const open = new Set();
  const pair = byId("graph-pair");
  fillSelect(byId("graph-number"), data.graphs.map((_, number) => `graph ${number}`));

  const views = () => {
    const graph = data.graphs[Number(byId("graph-number").value || 0)];
    const withWeights = byId("with-weights").checked;
    return shownStages(graph).map(([title, stage]) => [title, folded(graph, stage, open, withWeights)]);
  };

  function show(focus) {
    const shown = views();
    const most = Math.max(...shown.map(([, view]) => view.nodes.length));
    byId("graph-status").textContent = most > MOST_NODES
      ? `${most} nodes are too many to draw: fold some modules` : `${shown.map(([title, view]) => `${title.toLowerCase()}: ${view.nodes.length}`).join(", ")} nodes shown`;
    if (most > MOST_NODES) return;
    const press = (module) => () => { open.has(module) ? close(open, module) : open.add(module); show(module); };
    const figures = shown.map(([title, view]) => {
      for (const part of [...view.nodes, ...view.clusters]) if (part.module != null) part.press = press(part.module);
      return drawing(title, view.nodes, view.edges, view.clusters);
    });
    pair.replaceChildren(...figures);
    figures.forEach((figure) => figure.fit());
    if (typeof focus === "string") pair.querySelector(`[aria-label^="module ${CSS.escape(focus)}"]`)?.focus();
  }

  byId("fold").addEventListener("click", () => { open.clear(); show(); });
  byId("unfold").addEventListener("click", () => {
    const before = [...open];
    for (const [, view] of views()) for (const node of view.nodes) if (node.module != null) open.add(node.module);
    if (Math.max(...views().map(([, view]) => view.nodes.length)) > MOST_NODES) {
      open.clear();
      before.forEach((module) => open.add(module));
      byId("graph-status").textContent = "One level more is too much to draw: open single modules";
      return;
    }
    show();
  });
  for (const id of ["graph-number", "with-weights"]) byId(id).addEventListener("change", () => show());
  while (data.graphs.length && onlyFolded(views()).length === 1) open.add(onlyFolded(views())[0]);
  if (data.graphs.length) show();
  else byId("graph").hidden = true;
}

/** The stages to draw: a model's first and last, or the one of a file. */
function shownStages(graph) {
  if (graph.stages.length === 1) return [["In the file", graph.stages[0]]];
  return [["Before", graph.stages[0]], ["After", graph.stages.at(-1)]];
}

/** The folded modules of a view in which nothing else is worth seeing: those are opened at the start. */
function onlyFolded(views) {
  return [...new Set(views.flatMap(([, view]) => view.nodes.map((node) => node.module).filter((module) => module != null)))];
}

function close(open, module) {
  for (const other of [...open]) if (other === module || other.startsWith(module + ".")) open.delete(other);
}

/** Nodes, edges and open modules of a stage, where each folded module is one node. */
function folded(graph, stage, open, withWeights) {
  const nodes = new Map();
  const clusters = new Map();
  const standsFor = new Map(); // node name -> what is drawn for it
  for (const number of stage.nodes) {
    const node = graph.nodes[number];
    const [name, , kind, module] = node;
    if (kind === "weight" && !withWeights) continue;
    const [parent, fold] = place(graph.modules[module], open);
    for (let each = parent; each; each = above(each)) {
      clusters.set(each, { id: "in " + each, label: each, module: each, parent: above(each) ? "in " + above(each) : null });
    }
    const id = fold == null ? name : "module " + fold;
    standsFor.set(name, id);
    if (fold == null) nodes.set(id, { ...drawnNode(node), parent: parent ? "in " + parent : null });
    else nodes.set(id, foldedNode(nodes.get(id), id, fold, parent, kind));
  }
  const edges = new Map();
  for (const number of stage.nodes) {
    const [name, , , , inputs] = graph.nodes[number];
    for (const input of inputs) {
      const [from, to] = [standsFor.get(input), standsFor.get(name)];
      if (from != null && to != null && from !== to) edges.set(from + " > " + to, [from, to]);
    }
  }
  return { nodes: [...nodes.values()], edges: [...edges.values()], clusters: [...clusters.values()] };
}

const above = (module) => module.split(".").slice(0, -1).join(".");

/** [the innermost open module that holds a module, the folded one to draw in it or null]. */
function place(module, open) {
  const parts = module ? module.split(".") : [];
  for (let count = 1; count <= parts.length; count++) {
    const prefix = parts.slice(0, count).join(".");
    if (!open.has(prefix)) return [parts.slice(0, count - 1).join("."), prefix];
  }
  return [module, null];
}

function foldedNode(known, id, module, parent, kind) {
  const count = (known?.count || 0) + (kind === "call" ? 1 : 0);
  const lines = [`+ ${parent ? module.slice(parent.length + 1) : module}`, `${count} ops`];
  return { id, lines, classes: "module", label: `module ${module}, folded, ${count} ops`, parent: parent ? "in " + parent : null, module, count };
}
