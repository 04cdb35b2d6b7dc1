// What happened to runs besides steps: restarts, scaling, alarms. Marked on the charts, listed in a view.

import { time } from "./format.js";
import { state } from "./state.js";

const ROUTINE = new Set(["checkpoint", "push", "step"]);
// Kinds that are listed, and would only clutter the charts.

// Events of a run: { time, step or null, kind, text, run }. A run that writes no events.jsonl tells only its latest.
export function eventsOf(run) {
  if (run.events.length) {
    return run.events.map((event) => ({ ...event, time: time(event.time_s), step: event.step ?? null, run }));
  }
  return (run.status?.events ?? []).map((text) => {
    const [, clock, rest] = /^(\d\d:\d\d:\d\d) (.*)$/s.exec(text) ?? [null, "", text];
    return { time: clock, step: null, kind: "", text: rest, run };
  });
}

// Of all these runs, the latest first.
export function latestEvents(runs) {
  return runs.flatMap(eventsOf).reverse().sort((a, b) => (a.time < b.time ? 1 : a.time > b.time ? -1 : 0));
}

// What charts mark, each at its step.
export function marksOf(runs) {
  const leftOut = leftOutKinds();
  return runs.flatMap(eventsOf)
    .filter(({ step, kind }) => step !== null && !ROUTINE.has(kind) && !leftOut.has(kind))
    .map(({ step, kind, text }) => ({ step, text: `${kind}: ${text}`, isAlarm: kind === "alarm" }));
}

export function leftOutKinds() {
  return new Set(state().kinds.split(",").filter(Boolean));
}
