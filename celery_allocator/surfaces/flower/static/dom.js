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

/** A length of time in its largest unit of which there are two at least. */
export function roughly(seconds) {
  const left = Math.max(0, Math.floor(seconds));
  const [unit, size] = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]].find(([, one]) => left >= 2 * one || one === 1);
  return `${Math.floor(left / size)} ${unit}`;
}

/** A time of day; with its date where that is not near. */
export function moment(seconds, now) {
  return Math.abs(seconds - now) < 72000 ? clock(seconds) : new Date(seconds * 1000).toLocaleString([], { hour12: false });
}

/** An estimated start, p50 and p90: in how long, and, for who points at it, when. */
export function starts(half, most, now) {
  if (half === null) return "not known yet";
  const late = most ?? half;
  const texts = [half, late].map((at) => (at <= now ? "now" : roughly(at - now)));
  const text = texts[0] === texts[1] ? texts[0] : texts.join(" … ");
  const title = `half of such tasks start before ${moment(half, now)}, nine of ten before ${moment(late, now)}`;
  return h("span", { class: "alc-when", title }, text);
}

export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });

export function shape(asked) {
  const words = [];
  const several = asked.gpu_count > 1 ? `${asked.gpu_count} × ` : "";
  if (asked.gpu_memory_mb) words.push(`${several}${mb(asked.gpu_memory_mb)} GPU`);
  if (asked.cpu_cores) words.push(`${asked.cpu_cores} core${asked.cpu_cores === 1 ? "" : "s"}`);
  if (asked.ram_mb) words.push(`${mb(asked.ram_mb)} RAM`);
  if (asked.exclusive) words.push("a whole GPU");
  else if (asked.gpu) words.push(`${Math.round(asked.gpu * 1000) / 10} % of a GPU`);
  if (asked.gpu_model) words.push(`model ${asked.gpu_model}`);
  if (asked.node) words.push(`on ${asked.node}`);
  for (const [name, value] of Object.entries(asked.labels ?? {})) words.push(`${name}=${value}`);
  if (asked.anti_affinity) words.push(`apart from other ${asked.anti_affinity}`);
  if (asked.affinity) words.push(`near ${asked.affinity}`);
  if (asked.priority) words.push(`priority ${asked.priority}`);
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
