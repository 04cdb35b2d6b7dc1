// Which run a view shows that can only show one.

import { h } from "./dom.js";
import { change, state } from "./state.js";
import { store } from "./store.js";

export function shownRun() {
  return store.runs[Number(state().run)] ?? store.runs[0];
}

// Its element is null where there is one run only.
export class RunSelect {
  constructor(changes = {}) {
    const options = store.runs.map((run) => h("option", { value: String(run.index) }, run.name));
    this.select = h("select", { onchange: () => change({ run: this.select.value, ...changes }) }, options);
    this.element = store.runs.length > 1 ? h("label", {}, "Run ", this.select) : null;
  }

  update() {
    this.select.value = String(shownRun().index);
  }
}
