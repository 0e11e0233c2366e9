// Elements and figures. Whatever comes from the ledger becomes text, never markup.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(`alc-${id}`);

/** Megabytes (2**20 bytes) for people. */
export function mb(amount) {
  if (amount === null || amount === undefined) return "–";
  return Math.abs(amount) >= 1024 ? `${Number((amount / 1024).toFixed(1))} GB` : `${amount} MB`;
}

/** A length of time in its two largest units. */
export function span(seconds) {
  let left = Math.max(0, Math.floor(seconds));
  const parts = [];
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    const count = Math.floor(left / size);
    left %= size;
    if (count || (unit === "s" && !parts.length)) parts.push(`${count} ${unit}`);
  }
  return parts.slice(0, 2).join(" ");
}

export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });

export function shape(asked) {
  const words = [];
  if (asked.gpu_memory_mb) words.push(`${mb(asked.gpu_memory_mb)} GPU`);
  if (asked.cpu_cores) words.push(`${asked.cpu_cores} core${asked.cpu_cores === 1 ? "" : "s"}`);
  if (asked.ram_mb) words.push(`${mb(asked.ram_mb)} RAM`);
  if (asked.priority) words.push(`priority ${asked.priority}`);
  if (asked.tenant) words.push(`for ${asked.tenant}`);
  return words.join(", ");
}

/** Put children into a place, unless it shows the same data already: what has the focus stays. */
export function show(place, data, make) {
  const key = JSON.stringify(data);
  if (place.dataset.shows === key) return;
  const focused = document.activeElement?.dataset?.key;
  place.replaceChildren(...[make()].flat());
  place.dataset.shows = key;
  if (focused) place.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}
