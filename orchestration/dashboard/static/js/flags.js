// Red flags: figures that left their healthy range, in words.

import { figure } from "./format.js";
import { lastFigure } from "./plot_data.js";

export function isHealthy(value, healthy) {
  return (healthy.low === null || value >= healthy.low) && (healthy.high === null || value <= healthy.high);
}

// "score std 0 is below 1e−6 (step 7): ..."
export function flagsOf(chart, runs) {
  const flags = [];
  for (const run of runs) {
    for (const series of chart.series) {
      const last = series.healthy && lastFigure(run.records, series.key);
      if (last && !isHealthy(last.value, series.healthy)) {
        flags.push({ run, chart, series, text: flagText(series, last) });
      }
    }
  }
  return flags;
}

export function healthyText({ low, high }, unit) {
  if (low === null) return `healthy up to ${figure(high, unit)}`;
  return high === null ? `healthy from ${figure(low, unit)} on` : `healthy from ${figure(low, unit)} to ${figure(high, unit)}`;
}

function flagText({ label, unit, healthy }, { step, value }) {
  const isLow = healthy.low !== null && value < healthy.low;
  const bound = isLow ? `below ${figure(healthy.low, unit)}` : `above ${figure(healthy.high, unit)}`;
  return `${label} ${figure(value, unit)} is ${bound} (step ${step}): ${healthy.red_flag}.`;
}
