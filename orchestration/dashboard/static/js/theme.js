// Light or dark: as the system says, unless the switch says otherwise. Canvases cannot read CSS: `colour` does.

const KEY = "leash-theme";
const listeners = [];
const probe = document.createElement("span");
const dark = window.matchMedia("(prefers-color-scheme: dark)");

// The colour of a CSS variable, in the theme of now.
export function colour(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

export function onTheme(listener) {
  listeners.push(listener);
}

function apply(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  listeners.forEach((listener) => listener());
}

const select = document.getElementById("theme");
select.value = localStorage.getItem(KEY) ?? "auto";
select.addEventListener("change", () => {
  localStorage.setItem(KEY, select.value);
  apply(select.value);
});
dark.addEventListener("change", () => apply(select.value));
probe.hidden = true;
document.body.append(probe);
apply(select.value);
