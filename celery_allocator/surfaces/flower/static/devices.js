// Nodes and their devices: bars for memory, cells for cores and slots.
import { byId, h, mb, moment, show } from "./dom.js";
import { taskUrl, workerUrl } from "./wire.js";
import { buttons } from "./acts.js";
import { pager } from "./tables.js";

const PER_PAGE = 24;
const state = { offset: 0 };

const GOOD = { ready: "alc-good", offline: "alc-bad" };
const badge = (word) => h("span", { class: `alc-badge ${GOOD[word] || "alc-warn"}` }, word);

function measure(label, bar, unit = mb) {
  const parts = [
    ["alc-used", bar.within ?? Math.min(bar.used ?? 0, bar.promised), "used"],
    ["alc-over", bar.overused, "used beyond the promise"],
    ["alc-unused", bar.unused, bar.used === null ? "promised" : "promised, not used"],
    ["alc-leftover", bar.leftover ?? 0, "kept without a task"],
    ["alc-foreign", bar.foreign ?? 0, "foreign"],
  ];
  const told = parts.filter((part) => part[1] > 0).map(([, amount, word]) => `${unit(amount)} ${word}`);
  const text = `${label}: ${[...told, `${unit(bar.free)} free`].join(", ")} of ${unit(bar.capacity)}` +
    (bar.used === null ? "; use is not measured" : bar.foreign === null ? "; whose use it is, is not known" : "");
  const whole = Math.max(bar.capacity, 1);
  return h("div", { class: "alc-measure" },
    h("span", {}, label),
    h("div", { class: "alc-bar", role: "img", "aria-label": text, title: text },
      ...parts.map(([kind, amount]) => h("i", { class: kind, style: `width:${Math.min(100, (amount / whole) * 100)}%` }))),
    h("span", {}, `${unit(bar.promised)} of ${unit(bar.capacity)}`));
}

function cores(node) {
  const free = new Set(node.cores_free);
  const holders = new Map(node.cores_held.flatMap((one) => one.cores.map((core) => [core, one])));
  const busy = node.cores.length - node.cores_free.length;
  return h("div", { class: "alc-measure" },
    h("span", {}, "cores"),
    h("div", { class: "alc-cells", role: "img", "aria-label": `${busy} of ${node.cores.length} cores are held` },
      ...node.cores.map((core) => {
        const holder = holders.get(core);
        const who = holder ? `held by ${holder.name} (${holder.task_id})` : free.has(core) ? "free" : "held";
        return h("i", { class: free.has(core) ? "" : "alc-held", title: `core ${core}: ${who}` });
      })),
    h("span", {}, `${busy} of ${node.cores.length}`));
}

function slots(device) {
  const { capacity, promised } = device.slots;
  const text = `${promised} of ${capacity} slots are taken`;
  // A worker of many threads has more slots than anybody counts.
  if (capacity > 16) return h("span", { title: text }, `${promised} of ${capacity} slots`);
  return h("span", { class: "alc-cells", role: "img", "aria-label": text, title: text },
    ...Array.from({ length: capacity }, (_, i) => h("i", { class: i < promised ? "alc-held" : "" })));
}

/** What is given to nobody, though no claim holds it. */
function withheld(one, what) {
  if (!one) return null;
  const parts = [["foreign", one.foreign_mb], ["kept without a task", one.leftover_mb], ["beyond claims", one.overuse_mb]];
  const told = parts.filter(([, amount]) => amount > 0).map(([word, amount]) => `${mb(amount)} ${word}`).join(", ");
  return h("div", { class: "alc-muted alc-withheld", title: one.said.join("\n") }, `${mb(one.total_mb)} ${what}withheld: ${told}`);
}

/** Why a device takes no work. */
const reason = (one) => one.reason && one.state !== "ready"
  ? h("div", { class: `alc-reason ${one.fault && one.fault !== "other" ? "alc-error" : "alc-muted"}` }, one.reason) : null;

/** Tasks that hold this GPU and others. */
const several = (one) => (one.several ?? []).map((task) =>
  h("div", { class: "alc-muted alc-several" }, "⇄ ", h("a", { href: taskUrl(task.task_id) }, task.name), ` on ${task.devices.join(", ")}`));

/** For whom a device is kept, and until when. */
function kept(one, now) {
  if (!one.kept) return null;
  const { name, task_id, starts_at } = one.kept;
  return h("div", { class: "alc-kept" }, "◆ kept for ", h("a", { href: taskUrl(task_id) }, name),
    starts_at === null ? ", and emptied for it" : `, until ${moment(starts_at, now)}`);
}

function device(one, at) {
  const now = [
    one.utilization === null ? null : `${Math.round(one.utilization * 100)} %`,
    one.temperature_c === null ? null : `${one.temperature_c} °C`,
    one.power_w === null ? null : `${Math.round(one.power_w)} W`,
  ].filter(Boolean).join(" · ");
  return h("div", { class: "alc-device", "data-device": one.key },
    h("div", { class: "alc-line" },
      h("strong", { title: one.uuid }, one.device),
      badge(one.state),
      one.slice_of ? null : h("span", { class: "alc-muted" }, one.model),
      h("span", { class: "alc-end" }, buttons("device", one))),
    reason(one),
    one.memory ? measure("memory", one.memory) : null,
    withheld(one.withheld, ""),
    kept(one, at),
    ...several(one),
    one.loaded?.length ? h("div", { class: "alc-muted alc-loaded" }, `loaded: ${one.loaded.join(", ")}`) : null,
    h("div", { class: "alc-line alc-muted" },
      one.worker ? slots(one) : null,
      one.worker ? h("a", { href: workerUrl(one.worker) }, one.worker) : h("span", {}, "no worker"),
      h("span", { class: "alc-end" }, one.is_gpu && one.worker && one.memory.used === null ? "use not measured" : now)));
}

function node(view, at) {
  return h("article", { class: "alc-node", "data-node": view.node },
    h("div", { class: "alc-line" }, h("h3", {}, view.node), badge(view.state), h("span", { class: "alc-end" }, buttons("node", view))),
    measure("RAM", view.ram),
    withheld(view.withheld, "of RAM "),
    cores(view),
    ...boards(view.devices.filter((one) => one.is_gpu || one.worker), at));
}

/** Devices, with the MIG slices of a GPU together under its name. */
function boards(devices, at) {
  const slices = new Map();
  return devices.flatMap((one) => {
    if (!one.slice_of) return [device(one, at)];
    if (slices.has(one.slice_of)) {
      slices.get(one.slice_of).push(one);
      return [];
    }
    slices.set(one.slice_of, [one]);
    return [slices.get(one.slice_of)];
  }).map((one) => (Array.isArray(one)
    ? h("div", { class: "alc-board", "data-gpu": one[0].slice_of },
      h("div", { class: "alc-line" }, h("strong", {}, one[0].slice_of),
        h("span", { class: "alc-muted" }, `${one[0].model}, ${one.length} MIG slice${one.length === 1 ? "" : "s"}`)),
      ...one.map((slice) => device(slice, at)))
    : one));
}

const needsAttention = (one) => one.state !== "ready" || one.withheld || (one.memory && (one.memory.foreign > 0 || one.memory.overused > 0));

function meant(view, text, wanted) {
  const word = text.toLowerCase();
  return view.devices.some((one) =>
    (!wanted || (wanted === "busy" ? one.held > 0 : wanted === "attention" ? needsAttention(one) : one.state === wanted)) &&
    (!word || `${one.key} ${one.worker || ""} ${one.model} ${one.uuid}`.toLowerCase().includes(word)));
}

/** Draw those nodes that have a device which is meant; all, where the text means none (it is a task's, then). */
export function devices(pool, text, wanted) {
  let nodes = pool.nodes.filter((view) => meant(view, text, wanted));
  if (!nodes.length && !wanted) nodes = pool.nodes;
  state.offset = Math.min(state.offset, Math.max(0, Math.floor((nodes.length - 1) / PER_PAGE) * PER_PAGE));
  const place = byId("nodes");
  const page = nodes.slice(state.offset, state.offset + PER_PAGE);
  if (!page.length) {
    show(place, [pool.nodes.length], () => h("p", { class: "alc-empty" }, pool.nodes.length
      ? "No device is meant by this filter."
      : "No node is registered yet. Start a worker: celery -A proj worker --gpu 0"));
  } else {
    // Node by node: what has not changed is left alone, and with it the focus.
    const known = new Map([...place.children].map((child) => [child.dataset.slot, child]));
    delete place.dataset.shows;
    place.replaceChildren(...page.map((view) => {
      const slot = known.get(view.node) || h("div", { "data-slot": view.node });
      show(slot, view, () => node(view, pool.at));
      return slot;
    }));
  }
  pager(byId("nodes-pager"), state.offset, PER_PAGE, nodes.length, (offset) => {
    state.offset = offset;
    devices(pool, text, wanted);
  });
}
