"use strict";
// Plots of one layer: values on the int8 grid, magnitudes of columns, and its error among those of all layers.

const PLOT = { width: 460, height: 190, left: 46, right: 12, top: 22, bottom: 34 };

function plot(label) {
  return d3.create("svg").attr("viewBox", `0 0 ${PLOT.width} ${PLOT.height}`).attr("role", "img").attr("aria-label", label);
}

function axis(svg, generator, x, y) {
  svg.append("g").attr("class", "axis").attr("transform", `translate(${x},${y})`).call(generator);
}

function axisLabel(svg, text, x, y, anchor = "middle") {
  svg.append("text").attr("class", "label").attr("x", x).attr("y", y).attr("text-anchor", anchor).text(text);
}

/** Bars, one for each of the 255 levels of the int8 grid; the upper axis shows values at the median scale. */
function levelsPlot(what, levels, outliers) {
  const counts = levels.counts;
  const total = d3.sum(counts);
  const used = counts.filter((count) => count > 0).length;
  const bits = d3.sum(counts, (count) => (count ? -(count / total) * Math.log2(count / total) : 0));
  const [low, middle, high] = levels.scales.map(shortNumber);
  const note = `${used} of 255 levels used, ${bits.toFixed(1)} of 8 bits; one level is ${middle} at the median scale `
    + `(${low} to ${high}).` + (outliers ? ` ${outliers} outlier values are beside the grid.` : "");
  const svg = plot(`${what} on the int8 grid. ${note}`);
  const x = d3.scaleLinear([-127.5, 127.5], [PLOT.left, PLOT.width - PLOT.right]);
  const y = d3.scaleSymlog([0, d3.max(counts) || 1], [PLOT.height - PLOT.bottom, PLOT.top]);
  const width = x(1) - x(0);
  svg.selectAll("rect").data(counts).join("rect").attr("class", "bar").attr("x", (_, number) => x(number - 127.5))
    .attr("width", width).attr("y", (count) => y(count)).attr("height", (count) => y(0) - y(count))
    .append("title").text((count, number) => `level ${number - 127}: ${count} values`);
  const ticks = d3.range(0, 12).map((power) => 10 ** power).filter((value) => value <= d3.max(counts) && y(0) - y(value) > 11);
  axis(svg, d3.axisLeft(y).tickValues([0, ...ticks]).tickFormat(d3.format("~s")), PLOT.left, 0);
  axis(svg, d3.axisBottom(x).tickValues([-127, -64, 0, 64, 127]), 0, PLOT.height - PLOT.bottom);
  const value = d3.scaleLinear([-127.5 * levels.scales[1], 127.5 * levels.scales[1]], x.range());
  axis(svg, d3.axisTop(value).ticks(5), 0, PLOT.top);
  axisLabel(svg, "int8 level (above: value at the median scale)", PLOT.width / 2, PLOT.height - 4);
  return el("figure", {}, el("h3", { text: what }), svg.node(), el("figcaption", { text: note }));
}

/** The largest magnitudes by column, with the threshold. */
function peaksPlot(row, threshold, profile) {
  const peaks = row.peaks.filter(([, peak]) => peak != null);
  const note = row.outlier_columns.length
    ? `Columns that ${profile ? "the profile names" : `reach the threshold ${threshold}`}, and are multiplied in floating point: ${row.outlier_columns.length}.`
    : `No column reaches the threshold ${threshold}.`;
  const svg = plot(`Largest magnitudes by column. ${note} ` + peaks.slice(0, 12).map(([c, p]) => `${c}: ${shortNumber(p)}`).join(", "));
  const x = d3.scaleBand(peaks.map(([column]) => column), [PLOT.left, PLOT.width - PLOT.right]).padding(0.15);
  const top = Math.max(d3.max(peaks, ([, peak]) => peak) || 1, threshold);
  const y = d3.scaleLinear([0, top], [PLOT.height - PLOT.bottom, PLOT.top]).nice();
  const chosen = new Set(row.outlier_columns);
  svg.selectAll("rect").data(peaks).join("rect").attr("class", ([column]) => (chosen.has(column) ? "bar over" : "bar"))
    .attr("x", ([column]) => x(column)).attr("width", x.bandwidth()).attr("y", ([, peak]) => y(peak))
    .attr("height", ([, peak]) => y(0) - y(peak)).append("title").text(([column, peak]) => `column ${column}: ${shortNumber(peak)}`);
  axis(svg, d3.axisLeft(y).ticks(5), PLOT.left, 0);
  const every = Math.ceil(peaks.length / 12);
  axis(svg, d3.axisBottom(x).tickValues(x.domain().filter((_, number) => number % every === 0)).tickSize(0), 0, PLOT.height - PLOT.bottom);
  if (threshold) {
    svg.append("line").attr("class", "threshold").attr("x1", PLOT.left).attr("x2", PLOT.width - PLOT.right)
      .attr("y1", y(threshold)).attr("y2", y(threshold));
    axisLabel(svg, `threshold ${threshold}`, PLOT.width - PLOT.right, y(threshold) - 4, "end");
  }
  axisLabel(svg, "input column, largest first", PLOT.width / 2, PLOT.height - 4);
  return el("figure", {}, el("h3", { text: "Largest |x| of a column" }), svg.node(), el("figcaption", { text: note }));
}

/** The layer's error among those of all layers: one dot each. */
function errorPlot(row, rows) {
  const known = rows.filter((other) => other.snr_db != null);
  const rank = known.filter((other) => other.snr_db < row.snr_db).length + 1;
  const note = `${row.snr_db.toFixed(1)} dB: place ${rank} of ${known.length} from the worst. 20 dB more is a tenth of the error.`;
  const svg = plot(`Signal-to-noise ratio of all layers. ${note}`);
  const [low, high] = d3.extent(known, (other) => other.snr_db);
  const x = d3.scaleLinear([Math.min(low, high - 1), high], [PLOT.left, PLOT.width - PLOT.right]).nice();
  const middle = (PLOT.top + PLOT.height - PLOT.bottom) / 2;
  const height = PLOT.height - PLOT.bottom - PLOT.top - 12;
  const place = (number) => middle + (((number * 37) % 23) / 22 - 0.5) * height; // spread, the same each time
  svg.selectAll("circle").data(known).join("circle").attr("class", "dot").attr("r", 4)
    .attr("cx", (other) => x(other.snr_db)).attr("cy", (_, number) => place(number))
    .append("title").text((other) => `${layerName(other)}: ${other.snr_db.toFixed(1)} dB`);
  svg.append("circle").attr("class", "dot chosen").attr("r", 6).attr("cx", x(row.snr_db)).attr("cy", place(known.indexOf(row)));
  axis(svg, d3.axisBottom(x).ticks(6), 0, PLOT.height - PLOT.bottom);
  axisLabel(svg, "signal-to-noise ratio in dB, worse to the left", PLOT.width / 2, PLOT.height - 4);
  return el("figure", {}, el("h3", { text: "Error among all layers" }), svg.node(), el("figcaption", { text: note }));
}

/** What every scheme would make of the layer: a bar each, the report's own marked. */
function schemesPlot(row, chosen) {
  const known = row.schemes.filter((each) => each.snr_db != null);
  const written = (each) => `${each.scheme}: ${each.exact ? "exact" : each.snr_db == null ? "–" : `${each.snr_db.toFixed(1)} dB`}`;
  const note = `Signal-to-noise ratio of the layer on the same inputs; longer is better. The report is of ${chosen}.`;
  const svg = plot(`Error under each scheme. ${note} ${row.schemes.map(written).join(", ")}`);
  const left = PLOT.left + 112; // room for the names
  const x = d3.scaleLinear([Math.min(0, d3.min(known, (each) => each.snr_db) ?? 0), d3.max(known, (each) => each.snr_db) || 1], [left, PLOT.width - 44]);
  const y = d3.scaleBand(row.schemes.map((each) => each.scheme), [PLOT.top - 14, PLOT.height - PLOT.bottom]).padding(0.2);
  svg.selectAll("rect").data(known).join("rect").attr("class", (each) => (each.scheme === chosen ? "bar over" : "bar"))
    .attr("x", (each) => Math.min(x(0), x(each.snr_db))).attr("width", (each) => Math.abs(x(each.snr_db) - x(0)))
    .attr("y", (each) => y(each.scheme)).attr("height", y.bandwidth()).append("title").text(written);
  for (const each of row.schemes) {
    const middle = y(each.scheme) + y.bandwidth() / 2 + 4;
    axisLabel(svg, each.scheme, left - 6, middle, "end");
    axisLabel(svg, each.exact ? "exact" : each.snr_db == null ? "–" : each.snr_db.toFixed(1), x(Math.max(0, each.snr_db ?? 0)) + 4, middle, "start");
  }
  axis(svg, d3.axisBottom(x).ticks(5), 0, PLOT.height - PLOT.bottom);
  axisLabel(svg, "signal-to-noise ratio in dB", PLOT.width / 2, PLOT.height - 4);
  return el("figure", {}, el("h3", { text: "Error under each scheme" }), svg.node(), el("figcaption", { text: note }));
}
