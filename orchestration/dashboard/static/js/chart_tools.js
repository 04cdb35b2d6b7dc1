// What goes for all charts: smoothing, and the steps that they show.

import { h } from "./dom.js";
import { change, state } from "./state.js";

export class ChartTools {
  constructor() {
    this.smooth = h("input", {
      type: "range", min: "0", max: "0.98", step: "0.02", oninput: () => change({ smooth: this.smooth.value }),
    });
    this.shown = h("output");
    this.from = h("input", { type: "number", min: "0", step: "1", onchange: () => this.zoom() });
    this.to = h("input", { type: "number", min: "0", step: "1", onchange: () => this.zoom() });
    this.reset = h("button", { type: "button", onclick: () => change({ from: "", to: "" }) }, "All steps");
    this.checkpoints = h("input", {
      type: "checkbox", onchange: () => change({ checkpoints: this.checkpoints.checked ? "marked" : "" }),
    });
    this.element = h("form", { class: "tools", "aria-label": "Charts", onsubmit: (event) => event.preventDefault() },
      h("label", {}, "Smoothing ", this.smooth, " ", this.shown),
      h("label", {}, "From step ", this.from), h("label", {}, "to ", this.to), this.reset,
      h("label", {}, this.checkpoints, " Mark checkpoints"),
      h("span", { class: "hint" }, "Drag in a chart to zoom, double-click for all steps."));
  }

  update() {
    const { smooth, from, to, checkpoints } = state();
    this.checkpoints.checked = checkpoints !== "";
    this.smooth.value = smooth;
    this.shown.textContent = Number(smooth) ? smooth : "off";
    this.from.value = from;
    this.to.value = to;
    this.reset.disabled = from === "";
  }

  // Once both ends are given, or neither.
  zoom() {
    const [from, to] = [this.from.value, this.to.value];
    if ((from === "") === (to === "")) change({ from, to });
  }
}
