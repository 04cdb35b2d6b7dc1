// One prompt with its completions side by side.

import { h } from "./dom.js";
import { DASH, figure, fixed, number, signed } from "./format.js";
import { mean, scores } from "./group_list.js";
import { change, state } from "./state.js";
import { colourKey, tokenTable, tokenText } from "./tokens.js";

export function groupView(group) {
  const readout = h("p", { class: "readout", "aria-hidden": "true" });
  const isColoured = state().colour === "ratio";
  const point = (text) => { readout.textContent = text || "Point at a token for its log-probs."; };
  point("");
  const hasTexts = Boolean(group.completions[0].token_texts);
  const box = h("input", { type: "checkbox", onchange: () => change({ colour: box.checked ? "ratio" : "none" }) });
  box.checked = isColoured;
  return [
    h("p", { class: "prompt" }, h("span", { class: "role" }, "Prompt"), group.prompt),
    group.note ? h("p", { class: "note" }, `Tokens are not coloured: ${group.note}`) : null,
    hasTexts ? h("div", { class: "key-line" }, h("label", {}, box, " colour tokens"), isColoured ? colourKey() : null) : null,
    hasTexts ? readout : null,
    h("div", { class: "completions" }, group.completions.map((completion, index) =>
      completionCard(group, completion, index, isColoured, point))),
  ];
}

function completionCard(group, completion, index, isColoured, point) {
  const title = `Completion ${index + 1} of ${group.completions.length}`;
  const tokens = h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `${title}: tokens` });
  const showTokens = (event) => {
    if (event.target.open && !tokens.hasChildNodes()) tokens.append(tokenTable(completion));
  };
  const facts = [
    ["score", fixed(completion.score), "Weighted sum of the rewards"],
    ["advantage", signed(completion.advantage), `Score less the group's mean, ${fixed(mean(scores(group)))}`],
    ["KL", figure(completion.kl_nats, "nats"), "Summed over the completion"],
    ["tokens", number(completion.tokens), completion.truncated ? "Cut off at the limit" : "Ended by itself"],
    ["version", number(completion.policy_version), "Of the policy that sampled it"],
  ];
  return h("article", { class: "completion", "aria-label": title },
    h("dl", { class: "facts" }, facts.map(([name, text, help]) =>
      h("div", { title: help, class: name === "advantage" ? signClass(completion.advantage) : null },
        h("dt", {}, name), h("dd", {}, text ?? DASH)))),
    h("dl", { class: "rewards" }, Object.entries(completion.rewards).map(([source, value]) =>
      h("div", {}, h("dt", {}, source), h("dd", {}, fixed(value))))),
    tokenText(completion, isColoured, point),
    completion.truncated ? h("p", { class: "hint" }, "Cut off at the token limit.") : null,
    h("details", { ontoggle: showTokens }, h("summary", {}, "Tokens as a table"), tokens));
}

function signClass(value) {
  if (value === null || value === 0) return null;
  return value > 0 ? "good" : "poor";
}
