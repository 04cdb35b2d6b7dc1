// Red flags: figures of the last step that left their healthy range, in words. What that step does not have, such as
// the figures of a worker that is gone, is no longer so.

import { figure, isNumber } from "./format.js";

export function isHealthy(value, healthy) {
  return (healthy.low === null || value >= healthy.low) && (healthy.high === null || value <= healthy.high);
}

// "score std 0 is below 1e−6 (step 7): ..."
export function flagsOf(chart, runs) {
  const flags = [];
  for (const run of runs) {
    for (const series of chart.series) {
      const last = run.records.at(-1);
      const value = last?.[series.key];
      if (series.healthy && isNumber(value) && !isHealthy(value, series.healthy)) {
        flags.push({ run, chart, series, text: flagText(series, { step: last.step, value }) });
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
