// One run as a system: its parts and their waits, its workers, its settings.

import { h, replace, svg, table } from "../dom.js";
import { flowPicture, flowRows } from "../flow.js";
import { DASH, figure, isNumber } from "../format.js";
import { RunSelect, shownRun } from "../run_select.js";

const NUM_STEPS = 10;
// That figures are means of.
const PHASES = [
  ["waiting for rollouts", (means) => means.wait_batch_s],
  ["learning", (means) => means.learn_s],
  ["weight push", (means) => means.push_s],
  // A step's rollout_s begins where the step before ended.
  ["evaluations and checkpoints", (means) => means.rollout_s - means.wait_batch_s],
];

export class SystemView {
  constructor(element) {
    this.select = new RunSelect();
    this.steps = h("p", { class: "help" });
    this.picture = h("div");
    this.phases = h("div");
    this.words = h("div");
    this.workers = h("div");
    this.settings = h("div");
    this.recipe = h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Recipe" });
    const card = (title, ...children) => h("section", { class: "card", "aria-label": title }, h("h3", {}, title), children);
    replace(element,
      h("div", { class: "tools" }, h("h2", {}, "System"), this.select.element),
      card("Flow of a step", this.steps, this.picture, this.phases,
        h("details", {}, h("summary", {}, "Figures as a table"), this.words)),
      h("div", { class: "grid wide" }, card("Workers", this.workers), card("Settings that can be changed", this.settings)),
      card("Recipe", this.recipe));
  }

  update(news) {
    const run = shownRun();
    this.select.update();
    if (!news || news.has("records")) this.showFlow(run);
    if (!news || news.has("status")) this.showStatus(run);
    if (!news || news.has("runs")) {
      replace(this.recipe, table("Recipe", ["key", "value"], run.recipe, { class: "recipe" }));
    }
  }

  showFlow(run) {
    const records = run.records.slice(-NUM_STEPS);
    this.steps.textContent = records.length
      ? `Means of the last ${records.length} steps, up to step ${records.at(-1).step}.` : "No step is finished yet.";
    const means = meansOf(records);
    replace(this.picture, flowPicture(means));
    replace(this.phases, phaseBar(means));
    replace(this.words, table("Figures of a step", ["figure", "mean"], flowRows(means)));
  }

  showStatus(run) {
    const { workers, settings } = run.status ?? {};
    const header = ["worker", "kind", "state", "version", "running", "restarts"];
    const rows = (workers ?? []).map((worker) => [
      worker.name, worker.kind, h("span", { class: `state ${worker.state}` }, worker.state ?? DASH),
      figure(worker.version), figure(worker.num_running), figure(worker.restarts),
    ]);
    const notLive = h("p", { class: "empty" }, "Only a live run has workers.");
    replace(this.workers, rows.length ? table("Workers", header, rows) : notLive);
    const pairs = Object.entries(settings ?? {}).map(([key, value]) => [key, isNumber(value) ? figure(value) : String(value)]);
    replace(this.settings, pairs.length ? table("Settings", ["setting", "value"], pairs)
      : h("p", { class: "empty" }, "Only a live run has settings that leash set changes."));
  }
}

function meansOf(records) {
  const keys = new Set(records.flatMap(Object.keys));
  const means = {};
  for (const key of keys) {
    const values = records.map((record) => record[key]).filter(isNumber);
    if (values.length) means[key] = values.reduce((sum, value) => sum + value, 0) / values.length;
  }
  return means;
}

function phaseBar(means) {
  const parts = PHASES.map(([name, seconds]) => [name, seconds(means)]).filter(([, seconds]) => isNumber(seconds));
  const whole = parts.reduce((sum, [, seconds]) => sum + seconds, 0);
  if (!whole) return null;
  let x = 0;
  const bars = parts.map(([, seconds], index) => {
    const width = (100 * seconds) / whole;
    const bar = svg("rect", { x, y: 0, width: Math.max(width - 0.2, 0), height: 6, class: `fill-${index}` });
    x += width;
    return bar;
  });
  const texts = parts.map(([name, seconds], index) => h("li", {}, h("span", { class: `dot line-${index}`, "aria-hidden": "true" }),
    `${name} ${figure(seconds, "seconds")} (${Math.round((100 * seconds) / whole)} %)`));
  return [svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", class: "phase-bar", "aria-hidden": "true" }, bars),
    h("ul", { class: "phases", "aria-label": "Where the time of a step goes" }, texts)];
}
