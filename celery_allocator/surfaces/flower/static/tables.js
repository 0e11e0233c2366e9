// Lists in pages: what waits, what is on hold, what runs.
import { byId, h, mb, moment, shape, show, span, starts } from "./dom.js";
import { acts, taskUrl, view, workerUrl } from "./wire.js";
import { buttons } from "./acts.js";

const PER_PAGE = 50;

export function pager(place, offset, limit, total, go) {
  // The buttons outlive the look that drew them: they go by the latest.
  place.go = go;
  if (total <= limit) return show(place, null, () => []);
  const step = (label, to, can) =>
    h("button", { type: "button", class: "alc-small", disabled: !can, "data-key": label, onclick: () => place.go(to) }, label);
  return show(place, [offset, total], () => [
    step("Earlier", offset - limit, offset > 0),
    h("span", {}, `${offset + 1} to ${Math.min(offset + limit, total)} of ${total}`),
    step("Later", offset + limit, offset + limit < total),
  ]);
}

const task = (row) => [
  h("a", { href: taskUrl(row.task_id) }, row.name),
  h("span", { class: "alc-id" }, row.task_id),
];
/** The mark of the one for which something is kept. */
function first(row, now) {
  const kept = row.kept;
  if (!kept?.device) return null;
  const until = kept.starts_at === null ? "it is emptied for it" : `until ${moment(kept.starts_at, now)}`;
  return h("span", { class: "alc-kept", title: `${kept.device} is kept for it, ${until}` }, `◆ ${kept.device} is kept`);
}
const tenant = ["Tenant", (row) => row.requirements.tenant || "", "", (row) => row.requirements.tenant];
const ago = (seconds, now) => (seconds === null ? "–" : span(now - seconds));

const COLUMNS = {
  waiting: [
    ["#", (row) => row.position, "alc-number"],
    ["Task", (row, now) => [...task(row), first(row, now)]],
    tenant,
    ["Asks for", (row) => shape(row.requirements)],
    ["Waits for", (row, now) => ago(row.submitted_at, now), "alc-nowrap"],
    ["Starts in", (row, now) => starts(row.estimated_start_at, row.estimated_start_p90_at, now), "alc-nowrap"],
    ["Why", (row) => row.reason.text, "alc-why"],
  ],
  on_hold: [
    ["Task", task],
    tenant,
    ["Asks for", (row) => shape(row.requirements)],
    ["Since submission", (row, now) => ago(row.submitted_at, now), "alc-nowrap"],
    ["By", (row) => row.on_hold_by || ""],
  ],
  running: [
    ["Task", task],
    tenant,
    ["Device", (row) => [row.device, h("span", { class: "alc-id" }, row.worker ? h("a", { href: workerUrl(row.worker) }, row.worker) : row.kind === "manual" ? "by hand" : "")]],
    ["State", (row) => row.state],
    ["Holds", (row) => holds(row)],
    ["Uses", (row) => uses(row)],
    ["For", (row, now) => ago(row.started_at ?? row.granted_at, now), "alc-nowrap"],
  ],
};

/** What it asked for; of a share of a GPU, also what that came to; whether its claim has grown. */
function holds(row) {
  const asked = row.requirements;
  const came = !asked.gpu_memory_mb && row.gpu_memory_mb ? `${mb(row.gpu_memory_mb)} GPU: ` : "";
  const grown = row.grown ? `, grown ${row.grown === 1 ? "once" : `${row.grown} times`}` : "";
  return `${came}${shape(asked)}${grown}`;
}

/** What it uses; red, and by how much it is beyond its promise, where it is. */
function uses(row) {
  if (!row.use) return "–";
  const amount = (used, over, what) => {
    const mark = over > 0 ? { class: "alc-error alc-beyond", title: `${mb(over)} beyond its promise` } : {};
    return h("span", mark, ` ${mb(used)} ${what}${over > 0 ? " !" : ""}`);
  };
  const { gpu_memory_mb: gpu, ram_mb: ram, gpu_memory_over_mb: over, ram_over_mb: ramOver } = row.use;
  return [
    row.gpu_memory_mb && gpu !== null ? amount(gpu, over ?? gpu - row.gpu_memory_mb, "GPU") : null,
    ram === null ? null : amount(ram, ramOver ?? 0, "RAM"),
  ];
}

/** One list: looks at its part of the ledger, and draws it. */
export class List {
  constructor(name, empty) {
    this.name = name;
    this.empty = empty;
    this.offset = 0;
  }

  begin() {
    this.offset = 0;
  }

  async look(query, now) {
    const found = await view(this.name, { ...query, limit: PER_PAGE, offset: this.offset });
    if (!found.rows.length && this.offset > 0) this.offset = 0;
    this.draw(found, query, now);
    return found;
  }

  draw(found, query, now) {
    byId(`${this.name}-count`).textContent = found.matched === found.total ? `${found.total}` : `${found.matched} of ${found.total}`;
    // Of a column that says nothing in any row there is none.
    const columns = COLUMNS[this.name].filter(([, , , said]) => !said || found.rows.some(said));
    // Ages change every second: they are drawn in steps that people notice.
    const minute = Math.floor(now / 10);
    show(byId(this.name), [found.rows, minute, acts], () => {
      if (!found.rows.length) return h("p", { class: "alc-empty" }, found.total ? "None is meant by this filter." : this.empty);
      const heads = columns.map(([head]) => h("th", { scope: "col" }, head));
      if (acts) heads.push(h("th", { scope: "col" }, "Actions"));
      return h("table", {},
        h("thead", {}, h("tr", {}, ...heads)),
        h("tbody", {}, ...found.rows.map((row) => h("tr", { "data-allocation": row.allocation_id },
          ...columns.map(([, cell, kind]) => h("td", { class: kind || null }, ...[cell(row, now)].flat().filter((part) => part !== null))),
          acts ? h("td", {}, buttons(this.name, row)) : null))));
    });
    pager(byId(`${this.name}-pager`), this.offset, PER_PAGE, found.matched, (offset) => {
      this.offset = offset;
      this.look(query, now).catch(() => {}); // the next look tells what is wrong
    });
  }
}
