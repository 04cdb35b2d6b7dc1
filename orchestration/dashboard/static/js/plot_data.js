// From the records of runs to the lines of a chart. Knows nothing of the page.

import { isNumber } from "./format.js";

const SAME_SCALE = 25;
// Two metrics whose largest values differ by more than this factor do not share an axis.
const MAX_DASHES = 4;

// { steps, lines: [{ run, series, axis: "left" | "right", colour, dash, values, smooth }], axes: { left: unit, right } }
// Several runs: a colour a run, a dash a series. One run: a colour a series.
export function plotData(chart, runs, smoothing) {
  const steps = [...new Set(runs.flatMap((run) => run.records.map((record) => record.step)))].sort((a, b) => a - b);
  const position = new Map(steps.map((step, index) => [step, index]));
  const lines = [];
  for (const run of runs) {
    chart.series.forEach((series, index) => {
      const values = new Array(steps.length).fill(null);
      for (const record of run.records) {
        if (isNumber(record[series.key])) values[position.get(record.step)] = record[series.key];
      }
      if (values.every((value) => value === null)) return;
      const isAlone = runs.length === 1;
      lines.push({
        run,
        series,
        values,
        smooth: smoothing > 0 ? ema(values, smoothing) : values,
        colour: isAlone ? index : run.index,
        dash: isAlone ? 0 : index % MAX_DASHES,
      });
    });
  }
  const axes = assignAxes(lines);
  return { steps, lines, axes };
}

// Exponential moving average with weight `smoothing` on the past, corrected for its start; gaps stay gaps.
export function ema(values, smoothing) {
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = smoothing * sum + (1 - smoothing) * value;
    weight = smoothing * weight + (1 - smoothing);
    return sum / weight;
  });
}

// The last figure of a series in a run's records, with its step.
export function lastFigure(records, key) {
  for (let index = records.length - 1; index >= 0; index -= 1) {
    if (isNumber(records[index][key])) return { step: records[index].step, value: records[index][key] };
  }
  return null;
}

// The first metric gets the left axis; metrics of another unit or size share the right one.
function assignAxes(lines) {
  const sizes = new Map();
  for (const { series, values } of lines) {
    const size = values.reduce((largest, value) => Math.max(largest, Math.abs(value ?? 0)), 0);
    sizes.set(series.metric, Math.max(sizes.get(series.metric) ?? 0, size));
  }
  const first = lines[0]?.series;
  const axes = { left: first?.unit, right: undefined };
  for (const line of lines) {
    line.axis = line.series.unit === first.unit && isNear(sizes.get(first.metric), sizes.get(line.series.metric))
      ? "left" : "right";
    if (line.axis === "right") axes.right ??= line.series.unit;
  }
  return axes;
}

function isNear(a, b) {
  return a === 0 || b === 0 || Math.max(a / b, b / a) <= SAME_SCALE;
}
