// All events, the latest first; kinds that are left out here are not marked on the charts either.

import { h, replace } from "../dom.js";
import { eventTable } from "../event_table.js";
import { latestEvents, leftOutKinds } from "../events.js";
import { change, hiddenRuns, state } from "../state.js";
import { store } from "../store.js";

const MAX_ROWS = 1000;

export class EventsView {
  constructor(element) {
    this.kinds = h("fieldset", { class: "kinds" });
    this.text = h("input", { type: "search", oninput: () => change({ words: this.text.value }) });
    this.text.value = state().words;
    this.list = h("div", { class: "card" });
    replace(element, h("h2", {}, "Events"),
      h("form", { class: "tools", "aria-label": "Filter", onsubmit: (event) => event.preventDefault() },
        h("label", {}, "Text ", this.text), this.kinds),
      this.list);
  }

  update(news) {
    if (news && !news.has("events") && !news.has("status")) return;
    const hidden = hiddenRuns();
    const all = latestEvents(store.runs.filter((run) => !hidden.has(run.index)));
    this.showKinds([...new Set(all.map(({ kind }) => kind))].filter(Boolean).sort());
    const leftOut = leftOutKinds();
    const wanted = state().words.toLowerCase();
    const events = all.filter(({ kind, text }) => !leftOut.has(kind) && text.toLowerCase().includes(wanted));
    const signature = JSON.stringify(events.map((event) => [event.time, event.text]));
    if (signature === this.signature) return;
    this.signature = signature;
    replace(this.list, eventTable(events.slice(0, MAX_ROWS)));
  }

  showKinds(kinds) {
    if (kinds.join() !== this.shownKinds) {
      this.shownKinds = kinds.join();
      replace(this.kinds, h("legend", {}, "Kinds"), kinds.map((kind) => h("label", {},
        h("input", { type: "checkbox", value: kind, onchange: () => this.choose() }), ` ${kind}`)));
    }
    const leftOut = leftOutKinds();
    this.kinds.hidden = !kinds.length;
    for (const box of this.kinds.querySelectorAll("input")) box.checked = !leftOut.has(box.value);
  }

  choose() {
    const boxes = [...this.kinds.querySelectorAll("input")];
    change({ kinds: boxes.filter((box) => !box.checked).map((box) => box.value).join(",") });
  }
}
