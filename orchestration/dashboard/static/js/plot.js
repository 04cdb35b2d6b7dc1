// The door to uPlot: one chart on a canvas. What is drawn comes from plot_data.js.

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { tick } from "./format.js";
import { colour } from "./theme.js";

const COLOURS = 8;
const DASHES = [[], [6, 3], [2, 2], [8, 3, 2, 3]];
const FONT = "11px system-ui, sans-serif";
const HEIGHT = 200;
const FEW_STEPS = 3;
// Below this, lines are too short to be seen without points.
const FAINT = 0.25;
// Opacity of the figures themselves behind their moving average.
const cursors = uPlot.sync("steps");
const HEAR_MOVES_ONLY = { pub: (kind) => kind === "mousemove" || kind === "mouseleave" };

// onCursor(index or null), onZoom({ min, max } or null)
export function createPlot(element, data, { smoothing, onCursor, onZoom, marks, band }) {
  const options = {
    width: Math.max(element.clientWidth, 200),
    height: HEIGHT,
    padding: [8, null, 0, 0],
    legend: { show: false },
    scales: { x: { time: false, range: xRange }, left: { range: yRange }, right: { range: yRange } },
    series: [{}, ...data.lines.flatMap((line) => seriesOf(line, smoothing, data.steps.length < FEW_STEPS))],
    axes: axesOf(data.axes),
    cursor: {
      sync: { key: cursors.key, scales: ["x", null], filters: HEAR_MOVES_ONLY },
      drag: { x: true, y: false, setScale: false },
      bind: { dblclick: () => () => onZoom(null) },
      points: { size: 6 },
    },
    hooks: {
      setCursor: [(plot) => onCursor(plot.cursor.idx ?? null)],
      setSelect: [(plot) => zoomTo(plot, onZoom)],
      drawClear: [(plot) => drawBand(plot, band())],
      draw: [(plot) => drawMarks(plot, marks())],
    },
  };
  return new uPlot(options, columns(data, smoothing), element);
}

export function setPlotData(plot, data, smoothing, zoom) {
  plot.batch(() => {
    plot.setData(columns(data, smoothing));
    if (zoom) plot.setScale("x", zoom);
  });
}

// The colour of a line, as CSS class and variable.
export function colourName(index) {
  return `line-${index % COLOURS}`;
}

export function dashOf(index) {
  return DASHES[index % DASHES.length];
}

function columns({ steps, lines }, smoothing) {
  return [steps, ...lines.flatMap((line) => (smoothing > 0 ? [line.values, line.smooth] : [line.values]))];
}

function seriesOf(line, smoothing, hasPoints) {
  const series = {
    scale: line.axis,
    stroke: colour(colourName(line.colour)),
    width: 1.5,
    dash: dashOf(line.dash),
    spanGaps: true,
    points: { show: hasPoints, size: 5 },
  };
  return smoothing > 0 ? [{ ...series, alpha: FAINT, points: { show: false } }, series] : [series];
}

function axesOf(units) {
  const axis = { font: FONT, stroke: () => colour("text-soft"), ticks: { show: false } };
  const grid = { stroke: () => colour("grid"), width: 1 };
  const format = (unit) => (plot, values) => values.map((value) => tick(value, unit));
  const axes = [
    { ...axis, grid: { show: false }, size: 22, gap: 4, label: "step", labelSize: 14, labelGap: 0, labelFont: FONT, values: (plot, values) => values.map(wholeStep) },
    { ...axis, grid, scale: "left", size: 56, values: format(units.left) },
  ];
  if (units.right !== undefined) {
    axes.push({ ...axis, grid: { show: false }, scale: "right", side: 1, size: 56, values: format(units.right) });
  }
  return axes;
}

function wholeStep(value) {
  return Number.isInteger(value) ? String(value) : "";
}

function xRange(plot, min, max) {
  if (min === null) return [0, 1];
  return min === max ? [min - 1, max + 1] : [min, max];
}

// A little more than the figures; around figures that are all the same, as much again.
function yRange(plot, min, max) {
  if (min === null) return [0, 1];
  if (min !== max) return uPlot.rangeNum(min, max, 0.1, true);
  return min === 0 ? [0, 1] : [Math.min(0, 2 * min), Math.max(0, 2 * max)];
}

function zoomTo(plot, onZoom) {
  const { left, width } = plot.select;
  if (width < 4) return;
  onZoom({ min: Math.round(plot.posToVal(left, "x")), max: Math.round(plot.posToVal(left + width, "x")) });
  plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
}

function drawBand(plot, band) {
  if (!band) return;
  const { ctx, bbox } = plot;
  const { min, max } = plot.scales[band.axis];
  if (!Number.isFinite(min)) return;
  const y = (value) => plot.valToPos(Math.min(Math.max(value, min), max), band.axis, true);
  const [top, bottom] = [y(band.high ?? max), y(band.low ?? min)];
  ctx.save();
  ctx.fillStyle = colour("band");
  ctx.fillRect(bbox.left, top, bbox.width, bottom - top);
  ctx.restore();
}

function drawMarks(plot, marks) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.setLineDash([3, 3]);
  for (const mark of marks) {
    const x = plot.valToPos(mark.step, "x", true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.strokeStyle = ctx.fillStyle = colour(mark.isAlarm ? "bad" : "mark");
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.fillRect(x - 3, bbox.top, 6, 4);
  }
  ctx.restore();
}
