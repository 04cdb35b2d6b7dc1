// What the server has told, as it comes in.

import { state } from "./state.js";

export const store = {
  charts: [],
  runs: [], // { index, name, folder, recipe, records, events, status, problems }
};
const listeners = [];
let changed = new Set();

// Calls the listener once a frame with what changed: "runs", "charts", "records", "events", "status", "problem".
export function onNews(listener) {
  listeners.push(listener);
}

// Fetches the runs, then follows them for as long as the page is open. `sayConnection` is told "open", "lost" (the
// browser tries again by itself) or "refused" (it does not: the server wants another token, or is another one).
export async function follow(sayConnection) {
  const { runs } = await get("api/runs");
  store.runs = runs.map((run, index) => ({ ...run, index, records: [], events: [], status: null, problems: {} }));
  const source = new EventSource("api/stream");
  source.onopen = () => sayConnection("open");
  source.onerror = () => sayConnection(source.readyState === EventSource.CLOSED ? "refused" : "lost");
  for (const [kind, take] of Object.entries(TAKE)) {
    source.addEventListener(kind, (message) => {
      take(JSON.parse(message.data));
      if (changed.size === 0) requestAnimationFrame(tell);
      changed.add(kind);
    });
  }
}

// JSON from the server; an error with what it says is wrong.
export async function get(path) {
  const response = await fetch(path);
  const content = await response.json();
  if (!response.ok) throw new Error(content.error);
  return content;
}

const TAKE = {
  runs: ({ runs }) => meet(runs),
  charts: ({ charts }) => { store.charts = charts; },
  records: (news) => append("records", news),
  events: (news) => append("events", news),
  status: ({ run, status }) => { store.runs[run].status = status; },
  problem: ({ run, file, text }) => { store.runs[run].problems[file] = text; },
};

// Every connection begins with the runs that are served: after a pause it may be another process that serves others.
function meet(runs) {
  const folders = (which) => JSON.stringify(which.map((run) => run.folder));
  if (folders(runs) !== folders(store.runs)) {
    history.replaceState(null, "", `#/${state().view}`); // the rest of the address is of the other runs
    location.reload();
    return;
  }
  runs.forEach((run, index) => Object.assign(store.runs[index], run, { problems: {} }));
}

function append(what, { run, is_anew, rows }) {
  if (is_anew) store.runs[run][what] = [];
  store.runs[run][what].push(...rows);
}

function tell() {
  const news = changed;
  changed = new Set();
  listeners.forEach((listener) => listener(news));
}
