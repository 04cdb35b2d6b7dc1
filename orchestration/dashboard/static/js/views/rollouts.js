// What the policy wrote: by step, the prompts; of one prompt, its completions.

import { h, replace } from "../dom.js";
import { fixed } from "../format.js";
import { SORTS, chosenGroups, mean, scores } from "../group_list.js";
import { groupView } from "../group_view.js";
import { RunSelect, shownRun } from "../run_select.js";
import { change, link, state } from "../state.js";
import { get } from "../store.js";

export class RolloutsView {
  constructor(element) {
    this.loaded = {}; // what was fetched: path -> content
    this.asked = 0; // how often; an answer to an older question is dropped
    this.select = new RunSelect({ step: "", group: "" });
    this.step = h("select", { onchange: () => change({ step: this.step.value, group: "" }, { keep: true }) });
    this.earlier = h("button", { type: "button", "aria-label": "Earlier step", onclick: () => this.turn(-1) }, "‹");
    this.later = h("button", { type: "button", "aria-label": "Later step", onclick: () => this.turn(1) }, "›");
    this.text = h("input", { type: "search", oninput: () => change({ text: this.text.value }) });
    this.min = h("input", { type: "number", step: "any", oninput: () => change({ min: this.min.value }) });
    this.sort = h("select", { onchange: () => change({ sort: this.sort.value }) },
      Object.entries(SORTS).map(([name, [words]]) => h("option", { value: name }, words)));
    this.count = h("p", { class: "hint", role: "status" });
    this.list = h("ol", { class: "groups" });
    this.detail = h("section", { class: "card group", "aria-label": "Completions" });
    replace(element,
      h("h2", { class: "unseen" }, "Rollouts"),
      h("form", { class: "tools", "aria-label": "Rollouts", onsubmit: (event) => event.preventDefault() },
        this.select.element,
        h("label", {}, "Step ", this.step), this.earlier, this.later,
        h("label", {}, "Text ", this.text), h("label", {}, "Score at least ", this.min), h("label", {}, "Sort by ", this.sort)),
      h("div", { class: "rollouts" },
        h("nav", { class: "card", "aria-label": "Prompts" }, this.count, this.list), this.detail));
  }

  async update(news) {
    if (news && !news.has("records")) return;
    const { text, min, sort } = state();
    this.select.update();
    if (this.text.value !== text) this.text.value = text;
    if (this.min.value !== min) this.min.value = min;
    this.sort.value = sort;
    const asked = ++this.asked;
    try {
      await this.load(asked, Boolean(news));
    } catch (error) {
      if (asked === this.asked) this.showNothing({ class: "problem", role: "alert" }, error.message);
    }
  }

  remove() {
    this.asked += 1;
  }

  async load(asked, isNews) {
    const path = `api/runs/${shownRun().index}/samples`;
    if (isNews) this.loaded = {}; // there may be another step, and a run that went back writes steps again
    const { steps } = await this.fetched(path);
    if (asked !== this.asked) return;
    if (!steps.length) {
      this.showNothing({ class: "empty" }, "No rollouts are written down yet.");
      return;
    }
    const step = steps.includes(Number(state().step || NaN)) ? Number(state().step) : steps.at(-1);
    if (state().step !== String(step)) return change({ step }); // and come here again: the address is a link to it
    this.showSteps(steps, step); // before its groups, which may be damaged: other steps can still be chosen
    const { groups } = await this.fetched(`${path}/${step}`);
    if (asked !== this.asked) return;
    const chosen = chosenGroups(groups, state());
    const position = (chosen.find((group) => String(group.position) === state().group) ?? chosen[0])?.position;
    this.showList(groups, chosen, step, position);
    if (position === undefined) {
      this.shown = null;
      replace(this.detail, h("p", { class: "empty" }, "No rollout of this step is like that."));
      return;
    }
    const group = await this.fetched(`${path}/${step}/${position}`);
    if (asked !== this.asked) return;
    const shown = JSON.stringify([group, state().colour]);
    if (shown === this.shown) return;
    this.shown = shown;
    replace(this.detail, groupView(group));
  }

  // But words, in the place of all that was shown.
  showNothing(attributes, words) {
    this.shown = this.signature = null;
    this.count.textContent = "";
    replace(this.list);
    replace(this.detail, h("p", attributes, words));
  }

  async fetched(path) {
    this.loaded[path] ??= await get(path);
    return this.loaded[path];
  }

  showSteps(steps, step) {
    if (steps.join() !== this.steps?.join()) {
      this.steps = steps;
      replace(this.step, steps.map((each) => h("option", { value: String(each) }, String(each))));
    }
    this.step.value = String(step);
    this.earlier.disabled = step === steps[0];
    this.later.disabled = step === steps.at(-1);
  }

  showList(groups, chosen, step, position) {
    this.count.textContent = `${chosen.length} of ${groups.length} prompts`;
    const signature = JSON.stringify([chosen, step, position, location.hash]);
    if (signature === this.signature) return;
    this.signature = signature;
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.position : null;
    replace(this.list, chosen.map((group) => h("li", {}, h("a", {
      href: link({ step, group: group.position }),
      "aria-current": group.position === position ? "true" : null,
      "data-position": group.position,
    }, h("span", { class: "prompt-text" }, group.prompt), h("span", { class: "figures" }, summary(group))))));
    if (focused !== null) this.list.querySelector(`[data-position="${focused}"]`)?.focus();
  }

  turn(direction) {
    const step = this.steps[this.steps.indexOf(Number(this.step.value)) + direction];
    if (step !== undefined) change({ step, group: "" }, { keep: true });
  }
}

function summary(group) {
  const score = fixed(mean(scores(group)));
  return group.completions.length === 1 ? score : `${score} · ${group.completions.length}`;
}
