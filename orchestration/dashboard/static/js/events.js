// What happened to runs besides steps: restarts, scaling, alarms. Marked on the charts, listed in a view.

import { time } from "./format.js";
import { state } from "./state.js";

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

// What charts mark, each at its step; checkpoints, of which there are many, only if that was asked for.
export function marksOf(runs) {
  const leftOut = leftOutKinds();
  if (!state().checkpoints) leftOut.add("checkpoint");
  const words = ({ run, kind, text }) => `${runs.length > 1 ? `${run.name}, ` : ""}${kind}: ${text}`;
  return runs.flatMap(eventsOf)
    .filter(({ step, kind }) => step !== null && !leftOut.has(kind))
    .map((event) => ({ step: event.step, text: words(event), isAlarm: event.kind === "alarm" }));
}

export function leftOutKinds() {
  return new Set(state().kinds.split(",").filter(Boolean));
}
