// What was learned from runs: what tasks had better ask for, and whether they found loaded what they need.
import { byId, h, mb, show } from "./dom.js";

const WHAT = { gpu_memory_mb: "GPU memory", ram_mb: "RAM", cpu_cores: "cores" };
const amount = (row, value) => (value === null ? "–" : row.resource === "cpu_cores" ? `${Number(value.toFixed(1))}` : mb(Math.round(value)));
const COLUMNS = [
  ["Task", (row) => (row.size ? `${row.name} (${row.size})` : row.name)],
  ["", (row) => WHAT[row.resource]],
  ["Declared", (row) => amount(row, row.declared), "alc-number"],
  ["p99", (row) => amount(row, row.p99), "alc-number"],
  ["At most", (row) => amount(row, row.most), "alc-number"],
  ["Suggested", (row) => amount(row, row.suggested), "alc-number"],
  ["Runs", (row) => row.runs.toLocaleString(), "alc-number"],
  ["Declared is", (row) => h("span", row.verdict === "too small" ? { class: "alc-error" } : {}, row.verdict)],
];

/** Only where some task declares too little, far too much, or nothing. */
export function recommendations(found) {
  byId("s-learned").hidden = !found.rows.length;
  byId("learned-count").textContent = found.rows.length < found.total ? `${found.rows.length} of ${found.total}` : `${found.total}`;
  show(byId("learned"), found.rows, () => h("table", {},
    h("thead", {}, h("tr", {}, ...COLUMNS.map(([head, , kind]) => h("th", { scope: "col", class: kind }, head)))),
    h("tbody", {}, ...found.rows.map((row) => h("tr", { "data-learned": `${row.name} ${row.resource}` },
      ...COLUMNS.map(([, cell, kind]) => h("td", { class: kind }, cell(row))))))));
}

/** Of grants with an affinity in the last hour, how many went to where it was loaded. */
export function affinity({ hit, miss }) {
  const place = byId("affinity");
  place.hidden = hit + miss === 0;
  place.textContent = `Affinity: ${Math.round((100 * hit) / Math.max(1, hit + miss))} % of ${(hit + miss).toLocaleString()} grants went to where it was loaded.`;
}
