// Starts the page: views by name, news to the one that is shown.

import { h, replace } from "./dom.js";
import { showProblems } from "./problems.js";
import { RunTable } from "./run_table.js";
import { link, onChange, state } from "./state.js";
import { follow, onNews } from "./store.js";
import { onTheme } from "./theme.js";
import { ChartsView } from "./views/charts.js";
import { EventsView } from "./views/events.js";
import { OverviewView } from "./views/overview.js";
import { RolloutsView } from "./views/rollouts.js";
import { SystemView } from "./views/system.js";

// A view: new View(element), update(news or null), optionally redraw() for another theme and remove().
const VIEWS = {
  overview: ["Overview", OverviewView],
  charts: ["Charts", ChartsView],
  system: ["System", SystemView],
  rollouts: ["Rollouts", RolloutsView],
  events: ["Events", EventsView],
};
const main = document.getElementById("main");
let shown = { name: null, view: null };
let runTable = null;

function show() {
  const name = state().view in VIEWS ? state().view : "overview";
  const links = Object.entries(VIEWS).map(([view, [title]]) =>
    h("a", { href: link(view === name ? { view } : { view, step: "", group: "" }), "aria-current": view === name ? "page" : null }, title));
  if (name !== shown.name) {
    const isFirst = shown.name === null;
    shown.view?.remove?.();
    replace(main);
    shown = { name, view: new VIEWS[name][1](main) };
    document.title = `${VIEWS[name][0]} · Leash`;
    if (!isFirst) main.focus();
  }
  replace(document.getElementById("views"), links);
  shown.view.update(null);
}

const CONNECTION = {
  open: "connected",
  lost: "no connection; trying again",
  refused: "refused; open the address that leash printed last",
};

function sayConnection(how) {
  const place = document.getElementById("connection");
  place.textContent = CONNECTION[how];
  place.classList.toggle("lost", how !== "open");
}

async function start() {
  await follow(sayConnection);
  runTable = new RunTable(document.getElementById("runs"));
  onChange(() => {
    runTable.update();
    show();
  });
  onNews((news) => {
    runTable.update();
    showProblems();
    shown.view.update(news);
  });
  onTheme(() => shown.view?.redraw?.());
  runTable.update();
  show();
}

start().catch((error) => replace(main, h("p", { role: "alert", class: "problem" }, error.message)));
