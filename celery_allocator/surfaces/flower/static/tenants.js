// Who shares the pool, and how true the dates were.
import { byId, h, mb, show, span } from "./dom.js";

const percent = (share) => `${Number((share * 100).toFixed(1))} %`;
const plain = (amount) => `${amount}`;

/** What a tenant has of an amount, and of how much at most; red where that is reached. */
function held(tenant, name, unit) {
  const cap = tenant.quota[name];
  if (cap === undefined) return tenant[name] ? unit(tenant[name]) : "–";
  return h("span", tenant[name] >= cap ? { class: "alc-error" } : {}, `${unit(tenant[name])} of ${unit(cap)}`);
}

const COLUMNS = [
  ["Tenant", (one) => one.name || "(none)"],
  ["Weight", (one) => plain(one.quota.weight), "alc-number"],
  ["Share", (one) => percent(one.share), "alc-number"],
  ["Waiting", (one) => one.waiting.toLocaleString(), "alc-number"],
  ["GPU memory", (one) => held(one, "gpu_memory_mb", mb), "alc-number"],
  ["Cores", (one) => held(one, "cpu_cores", plain), "alc-number"],
  ["RAM", (one) => held(one, "ram_mb", mb), "alc-number"],
  ["Tasks", (one) => held(one, "tasks", plain), "alc-number"],
];

/** The panel of tenants: only where there is more than one, or one with a quota. */
export function tenants(pool) {
  byId("s-tenants").hidden = !pool.tenants.length;
  byId("tenants-count").textContent = pool.tenants.length < pool.tenants_total
    ? `${pool.tenants.length} of ${pool.tenants_total}` : `${pool.tenants_total}`;
  show(byId("tenants"), pool.tenants, () => h("table", {},
    h("thead", {}, h("tr", {}, ...COLUMNS.map(([head, , kind]) => h("th", { scope: "col", class: kind }, head)))),
    h("tbody", {}, ...pool.tenants.map((one) => h("tr", { "data-tenant": one.name },
      ...COLUMNS.map(([, cell, kind]) => h("td", { class: kind }, cell(one))))))));
}

/** How true the dates were so far; nothing before one was scored. */
export function dates(accuracy) {
  const place = byId("dates");
  place.hidden = !accuracy;
  if (!accuracy) return;
  place.textContent = `Dates: ${Math.round(accuracy.covered * 100)} % of ${accuracy.scored.toLocaleString()} starts came by their p90` +
    (accuracy.median_error_s === null ? "." : `, half were off by less than ${span(Math.max(1, Math.ceil(accuracy.median_error_s)))}.`);
}
