// Every chart, by dashboard.

import { ChartCard } from "../chart_card.js";
import { ChartTools } from "../chart_tools.js";
import { h, replace } from "../dom.js";
import { store } from "../store.js";

const TITLES = { learning: "Learning", throughput: "Throughput", workers: "Workers", reliability: "Reliability" };

export class ChartsView {
  constructor(element) {
    this.cards = new Map();
    this.tools = new ChartTools();
    this.sections = h("div");
    replace(element, h("h2", { class: "unseen" }, "Charts"), this.tools.element, this.sections);
  }

  update(news) {
    if (!news) this.tools.update();
    if (news && !["charts", "records", "events"].some((kind) => news.has(kind))) return;
    this.arrange();
    for (const chart of store.charts) this.cards.get(chart.title)?.update(chart);
  }

  redraw() {
    this.cards.forEach((card) => card.draw());
  }

  remove() {
    this.cards.forEach((card) => card.remove());
  }

  // Cards of charts that are new.
  arrange() {
    if (store.charts.every(({ title }) => this.cards.has(title)) && this.cards.size) return;
    const sections = Object.entries(TITLES).map(([dashboard, title]) => {
      const charts = store.charts.filter((chart) => chart.dashboard === dashboard);
      if (!charts.length) return null;
      return h("section", { class: "dashboard", "aria-label": title }, h("h2", {}, title),
        h("div", { class: "grid" }, charts.map((chart) => this.card(chart).element)));
    });
    replace(this.sections, sections.some(Boolean) ? sections : waiting());
  }

  card(chart) {
    if (!this.cards.has(chart.title)) this.cards.set(chart.title, new ChartCard(chart));
    return this.cards.get(chart.title);
  }
}

export function waiting() {
  return h("p", { class: "empty" }, "No step is finished yet. Charts appear with the first one.");
}
