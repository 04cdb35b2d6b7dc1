// A completion, token by token, coloured by how much likelier the policy found each than the reference did.

import { h, table } from "./dom.js";
import { fixed, signed } from "./format.js";

const LEVELS_NATS = [0.3, 1, 2, 4];
// Log-ratios at which the colour deepens.

// behavior - reference, in nats: above 0, the policy has come to prefer the token.
export function ratioOf(completion, index) {
  return completion.behavior_logprobs[index] - completion.reference_logprobs[index];
}

// The class of a log-ratio: up-1 to up-4, down-1 to down-4, or none.
export function levelOf(ratio) {
  const level = LEVELS_NATS.filter((bound) => Math.abs(ratio) >= bound).length;
  return level ? `${ratio > 0 ? "up" : "down"}-${level}` : "";
}

// The sampled tokens as text. Without token texts, the completion's plain text.
export function tokenText(completion, isColoured, onPoint) {
  if (!completion.token_texts) return h("p", { class: "tokens" }, completion.text);
  const spans = sampled(completion).map((index) => {
    const classes = [isColoured ? levelOf(ratioOf(completion, index)) : "", completion.is_special[index] ? "special" : ""];
    return h("span", { class: classes.join(" ").trim() || null, "data-index": index }, completion.token_texts[index]);
  });
  return h("p", {
    class: "tokens",
    onmouseover: (event) => {
      const index = event.target.dataset?.index;
      onPoint(index === undefined ? "" : sentence(completion, Number(index)));
    },
    onmouseleave: () => onPoint(""),
  }, spans);
}

export function tokenTable(completion) {
  const rows = sampled(completion).map((index) => [
    visible(completion.token_texts?.[index] ?? ""),
    String(completion.token_ids[index]),
    fixed(completion.behavior_logprobs[index]),
    fixed(completion.reference_logprobs[index]),
    h("span", { class: levelOf(ratioOf(completion, index)) }, signed(ratioOf(completion, index))),
  ]);
  return table("Tokens", ["token", "id", "policy", "reference", "ratio"], rows, { class: "token-table" });
}

export function colourKey() {
  const step = (level, text) => h("span", { class: level }, text);
  return h("p", { class: "key" }, "Likelier under the reference ",
    [4, 3, 2, 1].map((level) => step(`down-${level}`, `−${LEVELS_NATS[level - 1]}`)),
    [1, 2, 3, 4].map((level) => step(`up-${level}`, `+${LEVELS_NATS[level - 1]}`)),
    " likelier under the policy (nats)");
}

function sampled({ token_ids, num_prompt_tokens }) {
  return token_ids.map((id, index) => index).slice(num_prompt_tokens);
}

function sentence(completion, index) {
  return `${visible(completion.token_texts[index])} · id ${completion.token_ids[index]} · `
    + `policy ${fixed(completion.behavior_logprobs[index])}, reference ${fixed(completion.reference_logprobs[index])}, `
    + `ratio ${signed(ratioOf(completion, index))} nats`;
}

// White space as marks.
function visible(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "(empty)";
}
