// One chart with its title, its legend, what is wrong, and the same figures as a table.

import { announce, h, replace, svg, table } from "./dom.js";
import { marksOf } from "./events.js";
import { flagsOf, healthyText, isHealthy } from "./flags.js";
import { figure, isNumber, tick } from "./format.js";
import { createPlot, colourName, dashOf, setPlotData } from "./plot.js";
import { lastFigure, plotData } from "./plot_data.js";
import { change, hiddenRuns, state, zoom } from "./state.js";
import { store } from "./store.js";

const MAX_TABLE_ROWS = 1000;
let numCards = 0;

export class ChartCard {
  constructor(chart) {
    numCards += 1;
    const id = `chart-${numCards}`;
    this.chart = chart;
    this.hiddenSeries = new Set();
    this.pointedAt = null;
    this.index = null;
    this.flags = h("div", { class: "flags" });
    this.legend = h("table", { class: "legend" });
    this.event = h("p", { class: "event-here" });
    this.plotBox = h("div", {
      class: "plot", tabindex: "0", role: "group", "aria-labelledby": id,
      "aria-description": "Left and right arrow keys move through the steps. The figures are in the table below.",
      onkeydown: (event) => this.moveCursor(event),
    });
    this.tableBox = h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `${chart.title}: figures` });
    this.details = h("details", { ontoggle: () => this.showTable() }, h("summary", {}, "Figures as a table"), this.tableBox);
    this.element = h(
      "section", { class: "card", "aria-labelledby": id },
      h("h3", { id }, chart.title), h("p", { class: "help" }, chart.help),
      this.flags, this.plotBox, this.event, this.legend, this.details,
    );
    this.sizes = new ResizeObserver(() => this.fit());
    this.sizes.observe(this.plotBox);
  }

  // Shows what the store and the state say now.
  update(chart = this.chart) {
    this.chart = chart;
    const hidden = hiddenRuns();
    const smoothing = Number(state().smooth);
    this.runs = store.runs.filter((run) => !hidden.has(run.index));
    this.marks = marksOf(this.runs); // once, not with every movement of the pointer
    const series = chart.series.filter(({ key }) => !this.hiddenSeries.has(key));
    this.colours = new Map(chart.series.map(({ key }, index) => [key, index]));
    this.data = plotData(chart, this.runs, smoothing);
    this.data.lines = this.data.lines.filter((line) => series.includes(line.series));
    const shape = JSON.stringify([
      smoothing > 0, this.data.axes, this.data.lines.map((line) => [line.run.index, line.series.key, line.axis]),
    ]);
    if (this.plot && shape === this.shape) {
      setPlotData(this.plot, this.data, smoothing, zoom());
    } else {
      this.shape = shape;
      this.draw();
    }
    this.showFlags();
    this.showLegend();
    this.showTable();
  }

  // Anew, as for another theme.
  draw() {
    this.plot?.destroy();
    this.plot = null;
    if (!this.plotBox.isConnected || !this.data) return;
    const smoothing = Number(state().smooth);
    this.plot = createPlot(this.plotBox, this.data, {
      smoothing,
      onCursor: (index) => this.point(index),
      onZoom: (range) => change({ from: range?.min ?? "", to: range?.max ?? "" }),
      marks: () => this.marks,
      band: () => this.band(),
    });
    if (zoom()) setPlotData(this.plot, this.data, smoothing, zoom());
  }

  remove() {
    this.sizes.disconnect();
    this.plot?.destroy();
    this.element.remove();
  }

  fit() {
    if (!this.plot) return this.draw();
    if (this.plot.width !== this.plotBox.clientWidth && this.plotBox.clientWidth > 0) {
      this.plot.setSize({ width: this.plotBox.clientWidth, height: this.plot.height });
    }
  }

  // The healthy range of the series that is pointed at, or of the only metric on an axis.
  band() {
    const shown = this.data.lines;
    const pointed = shown.filter((line) => line.series.key === this.pointedAt);
    const candidates = pointed.length ? pointed : shown.filter((line) => {
      const metrics = new Set(shown.filter(({ axis }) => axis === line.axis).map(({ series }) => series.metric));
      return line.series.healthy && metrics.size === 1;
    });
    const line = candidates[0];
    return line?.series.healthy ? { ...line.series.healthy, axis: line.axis } : null;
  }

  point(index) {
    if (index === this.index) return;
    this.index = index;
    this.showLegend();
    const step = index === null ? null : this.data.steps[index];
    const here = this.marks.filter((mark) => mark.step === step);
    this.event.textContent = here.map((mark) => `Step ${step}: ${mark.text}`).join(" · ");
  }

  moveCursor(event) {
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!direction || !this.plot) return;
    event.preventDefault();
    const last = this.data.steps.length - 1;
    const start = this.index ?? (direction > 0 ? -1 : last + 1);
    const index = Math.min(Math.max(start + direction, 0), last);
    this.plot.setCursor({ left: this.plot.valToPos(this.data.steps[index], "x"), top: 10 });
    const figures = this.data.lines.map(({ run, series, values }) =>
      `${this.runs.length > 1 ? `${run.name} ` : ""}${series.label} ${figure(values[index], series.unit)}`);
    announce(`Step ${this.data.steps[index]}: ${figures.join(", ")}`);
  }

  showFlags() {
    const flags = flagsOf(this.chart, this.runs);
    this.element.classList.toggle("flagged", flags.length > 0);
    const text = flags.map((flag) => (this.runs.length > 1 ? `${flag.run.name}: ${flag.text}` : flag.text));
    if (text.join() === this.flags.dataset.text) return;
    this.flags.dataset.text = text.join();
    replace(this.flags, text.map((line) => h("p", {}, h("strong", {}, "Red flag "), line)));
  }

  showLegend() {
    const step = this.index === null ? null : this.data.steps[this.index];
    const focused = this.legend.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const inUnit = this.runs.length > 1 ? tick : figure; // with several runs there is little room
    const rows = this.chart.series.map((series) => h("tr", {},
      h("th", { scope: "row" }, this.toggle(series)),
      this.runs.map((run) => {
        const line = this.data.lines.find((candidate) => candidate.run === run && candidate.series.key === series.key);
        const last = step === null ? lastFigure(run.records, series.key) : null;
        const value = step === null ? last?.value : line?.values[this.index];
        const isOld = last !== null && last.step !== run.records.at(-1).step; // as in the red flags
        const isBad = series.healthy && isNumber(value) && !isOld && !isHealthy(value, series.healthy);
        return h("td", { class: isBad ? "bad" : null }, inUnit(value, series.unit));
      })));
    const when = step === null ? "last" : `step ${step}`;
    replace(this.legend,
      h("caption", { class: "unseen" }, `${this.chart.title}: series`),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Series"),
        this.runs.map((run) => h("th", { scope: "col" }, this.runs.length > 1 ? runLabel(run, when) : when)))),
      h("tbody", {}, rows));
    if (focused) this.legend.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  toggle(series) {
    const index = this.colours.get(series.key);
    const isAlone = this.runs.length === 1;
    const range = series.healthy ? `; ${healthyText(series.healthy, series.unit)}` : "";
    const axis = this.data.lines.find((line) => line.series.key === series.key)?.axis;
    return h("button", {
      type: "button", "data-key": series.key, title: series.help + range,
      "aria-pressed": String(!this.hiddenSeries.has(series.key)),
      onclick: () => {
        if (!this.hiddenSeries.delete(series.key)) this.hiddenSeries.add(series.key);
        this.update();
      },
      onmouseenter: () => this.pointAt(series.key), onmouseleave: () => this.pointAt(null),
      onfocus: () => this.pointAt(series.key), onblur: () => this.pointAt(null),
    }, swatch(isAlone ? colourName(index) : "line-none", isAlone ? 0 : index), series.label,
    axis === "right" ? h("small", {}, " right axis") : null);
  }

  pointAt(key) {
    this.pointedAt = key;
    this.plot?.redraw(false);
  }

  showTable() {
    if (!this.details.open) return;
    const columns = this.data.lines;
    const rows = this.data.steps.map((step, index) =>
      [String(step), ...columns.map(({ values, series }) => figure(values[index], series.unit))]);
    const header = columns.map(({ run, series }) => (this.runs.length > 1 ? `${run.name}: ${series.label}` : series.label));
    const shown = rows.slice(-MAX_TABLE_ROWS).reverse();
    replace(this.tableBox, table(`${this.chart.title}, the latest step first`, ["step", ...header], shown));
  }
}

function runLabel(run, when) {
  return [swatch(colourName(run.index), 0), run.name, h("span", { class: "unseen" }, ` ${when}`)];
}

function swatch(name, dash) {
  return svg("svg", { class: `swatch ${name}`, viewBox: "0 0 20 8", width: 20, height: 8, "aria-hidden": "true" },
    svg("line", { x1: 0, y1: 4, x2: 20, y2: 4, "stroke-dasharray": dashOf(dash).join(" ") || null }));
}
