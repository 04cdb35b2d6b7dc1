// Events as a table, in the order given.

import { h, table } from "./dom.js";
import { store } from "./store.js";

export function eventTable(events) {
  if (!events.length) return h("p", { class: "empty" }, "None written down.");
  const isOne = store.runs.length === 1;
  const header = ["Time", "Step", ...(isOne ? [] : ["Run"]), "Kind", "What happened"];
  const rows = events.map((event) => [
    event.time || "–",
    event.step === null ? "–" : String(event.step),
    ...(isOne ? [] : [event.run.name]),
    h("span", { class: `kind ${event.kind === "alarm" ? "bad" : ""}` }, event.kind || "–"),
    event.text,
  ]);
  return table("Events", header, rows, { class: "events" });
}
