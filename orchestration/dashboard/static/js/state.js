// What the page shows, kept in the hash of its address, so that a link shows another the same:
// #/rollouts?run=1&step=24&group=3&text=film

const DEFAULTS = {
  view: "overview",
  hidden: "", // positions of runs that charts leave out, as in "0,2"
  run: "0", // the one run of views that show one
  smooth: "0", // of the charts
  from: "",
  to: "",
  checkpoints: "", // "marked": on the charts
  kinds: "", // of events, that are left out
  words: "", // that events must have
  step: "", // of rollouts; the last if empty
  group: "", // its position; the first that is listed if empty
  text: "", // that rollouts must have
  min: "",
  sort: "order",
  colour: "ratio",
};
const listeners = [];
let hash = location.hash; // that `current` was read from
let current = read();

window.addEventListener("hashchange", () => {
  hash = location.hash;
  current = read();
  listeners.forEach((listener) => listener(current));
});

export function state() {
  return current;
}

// The address of this page with some things changed.
export function link(changes) {
  const next = { ...current, ...asTexts(changes) };
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(DEFAULTS)) {
    if (name !== "view" && next[name] !== value) query.set(name, next[name]);
  }
  const text = query.toString();
  return `#/${next.view}${text ? `?${text}` : ""}`;
}

// Changes what is shown. With `keep`, the browser's back button comes here again.
export function change(changes, { keep = false } = {}) {
  if (location.hash !== hash) return; // the browser has gone elsewhere, and is about to say so
  const address = link(changes);
  current = { ...current, ...asTexts(changes) };
  if (keep) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
  hash = location.hash;
  listeners.forEach((listener) => listener(current));
}

export function onChange(listener) {
  listeners.push(listener);
}

export function hiddenRuns() {
  return new Set(current.hidden.split(",").filter(Boolean).map(Number));
}

// The steps that charts show, or null for all of them.
export function zoom() {
  const [min, max] = [Number(current.from), Number(current.to)];
  return current.from !== "" && current.to !== "" && max > min ? { min, max } : null;
}

function read() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const given = Object.fromEntries(new URLSearchParams(query ?? ""));
  const known = Object.entries(given).filter(([name]) => name in DEFAULTS);
  return { ...DEFAULTS, ...Object.fromEntries(known), view: path || DEFAULTS.view };
}

function asTexts(changes) {
  return Object.fromEntries(Object.entries(changes).map(([name, value]) => [name, String(value)]));
}
