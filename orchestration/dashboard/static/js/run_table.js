// The runs, a line each: state, progress, and whether charts show it.

import { h, replace } from "./dom.js";
import { duration, figure } from "./format.js";
import { colourName } from "./plot.js";
import { lastFigure } from "./plot_data.js";
import { change, hiddenRuns } from "./state.js";
import { store } from "./store.js";

const COLUMNS = ["Run", "State", "Progress", "Elapsed", "Left", "Score", "KL"];

export class RunTable {
  constructor(element) {
    this.rows = store.runs.map((run) => this.row(run));
    replace(element, h("table", { class: "runs" },
      h("caption", { class: "unseen" }, "Runs"),
      h("thead", {}, h("tr", {}, COLUMNS.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, this.rows.map(({ element: line }) => line))));
  }

  update() {
    const hidden = hiddenRuns();
    for (const { run, cells, box } of this.rows) {
      const progress = run.status?.progress;
      const step = run.records.at(-1)?.step ?? progress?.step ?? 0;
      const steps = progress?.steps ?? null;
      if (box) box.checked = !hidden.has(run.index);
      replace(cells.state, h("span", { class: `state ${run.status?.is_live ? "live" : "over"}` }, run.status?.state ?? "…"));
      cells.bar.max = steps ?? Math.max(step, 1);
      cells.bar.value = step;
      cells.steps.textContent = steps === null ? `step ${step}` : `step ${step} of ${steps}`;
      cells.elapsed.textContent = duration(progress?.elapsed_s);
      cells.left.textContent = run.status?.is_live ? duration(progress?.left_s) : "–";
      cells.score.textContent = figure(lastFigure(run.records, "score_mean")?.value);
      cells.kl.textContent = figure(lastFigure(run.records, "kl_nats_per_sequence")?.value, "nats");
    }
  }

  row(run) {
    const cells = Object.fromEntries(["state", "elapsed", "left", "score", "kl"].map((name) => [name, h("td")]));
    cells.bar = h("progress", { "aria-label": `Progress of ${run.name}` });
    cells.steps = h("span");
    const dot = h("span", { class: `dot ${colourName(run.index)}`, "aria-hidden": "true" });
    const isAlone = store.runs.length === 1;
    const box = isAlone ? null : h("input", { type: "checkbox", onchange: () => this.choose() });
    const name = isAlone ? run.name : h("label", {}, box, dot, run.name);
    const element = h("tr", {}, h("th", { scope: "row" }, name), cells.state,
      h("td", { class: "progress" }, cells.bar, cells.steps), cells.elapsed, cells.left, cells.score, cells.kl);
    return { run, cells, box, element };
  }

  choose() {
    change({ hidden: this.rows.filter(({ box }) => !box.checked).map(({ run }) => run.index).join(",") });
  }
}
