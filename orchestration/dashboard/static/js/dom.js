// Elements made of data. Texts of policies are untrusted: they only ever become text nodes.

const SVG = "http://www.w3.org/2000/svg";

// h("a", { class: "link", href: "#x", onclick: f }, "text", otherElement, null)
export function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

export function replace(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
}

// A table with a header row; cells are texts or elements. The first cell of a row is its header.
export function table(caption, header, rows, properties = {}) {
  const cells = ([first, ...rest]) => [h("th", { scope: "row" }, first), ...rest.map((cell) => h("td", {}, cell))];
  return h(
    "table",
    properties,
    h("caption", { class: "unseen" }, caption),
    h("thead", {}, h("tr", {}, header.map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, cells(row)))),
  );
}

// So that a screen reader says it.
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) element.append(child);
  }
  return element;
}
