// What to look at first: red flags, who waits for whom, the few charts that tell how a run goes, the latest events.

import { ChartCard } from "../chart_card.js";
import { ChartTools } from "../chart_tools.js";
import { h, replace } from "../dom.js";
import { eventTable } from "../event_table.js";
import { latestEvents } from "../events.js";
import { flagsOf } from "../flags.js";
import { link, hiddenRuns } from "../state.js";
import { store } from "../store.js";
import { waiting } from "./charts.js";

const NUM_EVENTS = 8;

export class OverviewView {
  constructor(element) {
    this.cards = new Map();
    this.tools = new ChartTools();
    this.flags = h("section", { class: "red-flags", "aria-label": "Red flags" });
    this.grid = h("div", { class: "grid" });
    this.events = h("div");
    replace(element, h("h2", { class: "unseen" }, "Overview"), this.flags, this.tools.element, this.grid,
      h("section", { class: "card", "aria-labelledby": "latest" }, h("h3", { id: "latest" }, "Latest events"), this.events));
  }

  update(news) {
    if (!news) this.tools.update();
    const charts = store.charts.filter((chart) => chart.in_overview);
    for (const chart of charts) {
      if (!this.cards.has(chart.title)) this.cards.set(chart.title, new ChartCard(chart));
    }
    const elements = charts.map((chart) => this.cards.get(chart.title).element);
    if (!elements.length || elements.some((element, index) => element !== this.grid.children[index])) {
      replace(this.grid, elements.length ? elements : waiting());
    }
    if (!news || ["charts", "records", "events"].some((kind) => news.has(kind))) {
      charts.forEach((chart) => this.cards.get(chart.title).update(chart));
      this.showFlags();
    }
    this.showEvents();
  }

  redraw() {
    this.cards.forEach((card) => card.draw());
  }

  remove() {
    this.cards.forEach((card) => card.remove());
  }

  // Of all charts, also of those that stand in another view.
  showFlags() {
    const hidden = hiddenRuns();
    const runs = store.runs.filter((run) => !hidden.has(run.index));
    const flags = store.charts.flatMap((chart) => flagsOf(chart, runs));
    const lines = flags.map(({ run, text }) => (runs.length > 1 ? `${run.name}: ${text}` : text));
    const signature = JSON.stringify([lines, store.charts.length > 0]);
    if (signature === this.shownFlags) return;
    this.shownFlags = signature;
    const sure = store.charts.length ? "No red flags: every figure that has a healthy range is in it." : "";
    replace(this.flags, lines.length
      ? h("ul", {}, lines.map((line, index) => h("li", {}, line, " ",
        h("a", { href: link({ view: "charts" }) }, `See ${flags[index].chart.title}`))))
      : h("p", { class: "fine" }, sure));
  }

  showEvents() {
    const hidden = hiddenRuns();
    const events = latestEvents(store.runs.filter((run) => !hidden.has(run.index))).slice(0, NUM_EVENTS);
    const text = JSON.stringify(events.map((event) => [event.time, event.text]));
    if (text === this.shownEvents) return;
    this.shownEvents = text;
    replace(this.events, eventTable(events));
  }
}
