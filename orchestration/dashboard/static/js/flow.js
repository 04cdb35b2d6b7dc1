// The system as a picture: what flows where, how long each part takes, and who waits for whom.

import { svg } from "./dom.js";
import { figure } from "./format.js";

const WIDTH = 1000;
const HEIGHT = 330;

// `means`: figures of a step by key, each the mean of the latest steps, or undefined.
export function flowPicture(means) {
  const seconds = (key) => figure(means[key], "seconds");
  const rate = (key) => `${figure(means[key])} tokens/s`;
  const longest = (means.wait_batch_s ?? 0) >= (means.wait_policy_s ?? 0) ? "wait_batch_s" : "wait_policy_s";
  const wait = (x, y, key, text) => svg("text", {
    x, y, class: key === longest && means[key] > 0 ? "wait longest" : "wait", "text-anchor": "middle",
  }, `${text} ${seconds(key)}`);
  return svg(
    "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "flow", role: "img", "aria-labelledby": "flow-title flow-text" },
    svg("title", { id: "flow-title" }, "How rollouts and weights flow"),
    svg("desc", { id: "flow-text" }, "The table below has the same figures."),
    arrowHead(),
    arrow("M 120 120 H 178"),
    arrow("M 380 96 C 420 96 420 56 458 56"), arrow("M 380 144 C 420 144 420 184 458 184"),
    arrow("M 640 56 C 690 56 690 96 738 96"), arrow("M 640 184 C 690 184 690 144 738 144"),
    arrow("M 840 176 V 260 C 840 284 830 284 810 284 H 642"), arrow("M 460 284 H 310 C 290 284 280 284 280 260 V 180"),
    box(20, 90, 100, 60, "Prompts", [`${figure(means.prompt_tokens)} tokens`]),
    box(180, 64, 200, 112, "Rollout workers", [`sampling ${seconds("sampling_s")}`, rate("tokens_per_second_rollout")]),
    box(460, 24, 180, 64, "Reference", [`completions wait ${seconds("wait_reference_s")}`]),
    box(460, 152, 180, 64, "Rewards", [`completions wait ${seconds("wait_reward_s")}`]),
    box(740, 64, 200, 112, "Learner", [`learning ${seconds("learn_s")}`, rate("tokens_per_second_learner")]),
    box(460, 252, 180, 64, "Weight push", [`${seconds("push_s")}, ${figure(means.bytes, "bytes")}`]),
    wait(840, 52, "wait_batch_s", "waits for rollouts"), wait(280, 52, "wait_policy_s", "waits for newer weights"),
  );
}

// The same in words: name and text of each figure.
export function flowRows(means) {
  const rows = [
    ["The loop waits for rollouts", means.wait_batch_s, "seconds"],
    ["Rollouts wait for newer weights", means.wait_policy_s, "seconds"],
    ["A completion waits for its rewards", means.wait_reward_s, "seconds"],
    ["A completion waits for the reference", means.wait_reference_s, "seconds"],
    ["Sampling", means.sampling_s, "seconds"],
    ["Learning", means.learn_s, "seconds"],
    ["Weight push", means.push_s, "seconds"],
    ["Whole step", means.step_s, "seconds"],
    ["Tokens a second, sampled", means.tokens_per_second_rollout, ""],
    ["Tokens a second, trained on", means.tokens_per_second_learner, ""],
    ["Tokens a second, of the run", means.tokens_per_second_run, ""],
  ];
  return rows.map(([name, value, unit]) => [name, figure(value, unit)]);
}

function box(x, y, width, height, title, lines) {
  const middle = x + width / 2;
  const first = y + height / 2 - (lines.length * 20) / 2 + 5;
  return svg("g", {}, svg("rect", { x, y, width, height, rx: 8 }),
    svg("text", { x: middle, y: first, class: "part", "text-anchor": "middle" }, title),
    lines.map((line, index) => svg("text", { x: middle, y: first + 20 * (index + 1), "text-anchor": "middle" }, line)));
}

function arrow(path) {
  return svg("path", { d: path, class: "arrow", "marker-end": "url(#arrow-head)" });
}

function arrowHead() {
  return svg("defs", {}, svg("marker",
    { id: "arrow-head", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, orient: "auto" },
    svg("path", { d: "M 0 0 L 8 4 L 0 8 z", class: "head" })));
}
