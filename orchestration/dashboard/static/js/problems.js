// What of the runs cannot be read, in the words of the server.

import { h, replace } from "./dom.js";
import { store } from "./store.js";

export function showProblems() {
  const place = document.getElementById("problems");
  const texts = store.runs.flatMap((run) => [...Object.values(run.problems), run.status?.problem].filter(Boolean));
  const text = [...new Set(texts)];
  if (text.join() === place.dataset.text) return;
  place.dataset.text = text.join();
  replace(place, text.map((line) => h("p", { class: "problem" }, line)));
}
