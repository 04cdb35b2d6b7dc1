// Numbers for people. A figure that is not known is a dash, never a zero.

export const DASH = "–";
const MINUS = "−";

export function figure(value, unit = "") {
  if (!isNumber(value)) return DASH;
  switch (unit) {
    case "seconds": return Math.abs(value) >= 120 ? duration(value) : `${number(value)} s`;
    case "bytes": return bytes(value);
    case "ratio": return `${number(value * 100)} %`;
    case "": return number(value);
    default: return `${number(value)} ${unit}`;
  }
}

// As at an axis: without words, which stand in the legend.
export function tick(value, unit) {
  return unit === "nats" || unit === "tokens" ? number(value) : figure(value, unit);
}

export function number(value) {
  if (!isNumber(value)) return DASH;
  const size = Math.abs(value);
  let text;
  if (size === 0) text = "0";
  else if (size < 1e-3 || size >= 1e7) text = value.toExponential(1).replace(/\.0e/, "e").replace("e+", "e");
  else if (size >= 1000) text = Math.round(value).toLocaleString("en");
  else text = String(Number(value.toPrecision(3)));
  return text.replaceAll("-", MINUS);
}

// With two decimals, so that numbers below each other can be compared.
export function fixed(value) {
  return isNumber(value) ? value.toFixed(2).replace("-", MINUS) : DASH;
}

export function signed(value) {
  return isNumber(value) && value > 0 ? `+${fixed(value)}` : fixed(value);
}

export function duration(seconds) {
  if (!isNumber(seconds)) return DASH;
  const whole = Math.round(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${rest} s` : `${rest} s`;
}

export function time(unixSeconds) {
  if (!isNumber(unixSeconds)) return DASH;
  const moment = new Date(unixSeconds * 1000);
  const two = (part) => String(part).padStart(2, "0");
  const day = [moment.getFullYear(), two(moment.getMonth() + 1), two(moment.getDate())].join("-");
  return `${day} ${[moment.getHours(), moment.getMinutes(), moment.getSeconds()].map(two).join(":")}`;
}

export function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = value > 0 ? Math.min(units.length - 1, Math.floor(Math.log10(value) / 3)) : 0;
  return `${number(value / 1000 ** power)} ${units[power]}`;
}
