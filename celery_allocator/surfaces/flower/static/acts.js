// What an operator can do from here: a button each, then a dialog that says what will happen and asks why.
import { byId, h } from "./dom.js";
import { act, acts } from "./wire.js";

const ON_ALLOCATION = (row) => ({ allocation_id: row.allocation_id });
const TEXTS = {
  cordon: ["Cordon", "Grant nothing new there. What runs goes on."],
  uncordon: ["Uncordon", "Grant there again."],
  drain: ["Drain", "Grant nothing new there, and take back what has not started. What runs goes on."],
  hold: ["Hold", "Keep its place in line, and do not grant it."],
  unhold: ["Let go on", "It goes on from its place in line."],
  cancel: ["Cancel", "End it before it starts. Whoever waits for its result is told that it was revoked."],
  priority: ["Priority", "Larger starts first."],
  front: ["To the front", "Before the first in line. What comes later with a larger priority passes it."],
  pause: ["Pause the pool", "Grant nothing in the whole pool. What runs, and what is granted, goes on."],
  resume: ["Resume the pool", "Grant again."],
};

let done = () => {};
// Which dialog is open: an answer that comes when another one is leaves that alone.
let open = 0;
export const whenDone = (told) => (done = told);

function offered(kind, row) {
  if (kind === "device" || kind === "node") return row.state === "ready" ? ["cordon", "drain"] : row.state === "offline" ? [] : ["uncordon"];
  if (kind === "pool") return [row.paused === "stopped" ? "resume" : "pause"];
  if (kind === "on_hold") return ["unhold", "front", "cancel"];
  if (kind === "waiting") return ["hold", "priority", "front", "cancel"];
  return row.state === "granted" || row.kind === "manual" ? ["cancel"] : [];
}

function args(kind, row) {
  if (kind === "pool") return {};
  return kind === "device" ? { target: row.key } : kind === "node" ? { target: row.node } : ON_ALLOCATION(row);
}

const subject = (kind, row) => ({ device: row.key, node: row.node, pool: row.pool }[kind] || `${row.name} (${row.task_id})`);

/** One button: with a single action it names that, else the dialog lets one choose. */
export function buttons(kind, row) {
  const actions = acts ? offered(kind, row) : [];
  if (!actions.length) return h("span");
  const word = actions.length === 1 ? TEXTS[actions[0]][0] : "Act…";
  return h("button", {
    type: "button", class: "alc-small", "data-key": `${kind} ${subject(kind, row)}`,
    "aria-label": `${word} ${subject(kind, row)}`, "aria-haspopup": "dialog", onclick: () => ask(actions, kind, row),
  }, word);
}

function choice(action, chosen) {
  const [title, text] = TEXTS[action];
  return h("label", { class: "alc-choice" },
    h("input", { type: "radio", name: "action", value: action, checked: chosen, required: true, onchange: () => choose(action) }),
    h("span", {}, h("strong", {}, title), h("small", {}, text)));
}

function choose(action) {
  byId("dialog-value-label").hidden = action !== "priority";
  byId("dialog-yes").textContent = TEXTS[action][0];
}

function ask(actions, kind, row) {
  const mine = ++open;
  const dialog = byId("dialog");
  const form = dialog.querySelector("form");
  byId("dialog-title").textContent = subject(kind, row);
  byId("dialog-choices").replaceChildren(...actions.map((action, i) => choice(action, i === 0)));
  byId("dialog-error").textContent = "";
  byId("dialog-yes").disabled = false;
  byId("dialog-reason").value = "";
  byId("dialog-value").value = row.requirements?.priority ?? 0;
  choose(actions[0]);
  byId("dialog-no").onclick = () => dialog.close();
  form.onsubmit = async (event) => {
    event.preventDefault();
    const action = form.elements.action.value;
    const given = args(kind, row);
    if (action === "priority") given.priority = Number.parseInt(byId("dialog-value").value, 10);
    byId("dialog-yes").disabled = true;
    try {
      const told = await act(action, given, byId("dialog-reason").value);
      if (mine === open) dialog.close();
      tell(`${told.text} (entry ${told.entry} of the journal)`);
      done();
    } catch (error) {
      const text = error.name === "TimeoutError" ? "No answer in time: it may be done, or not. Look at the journal." : error.message;
      if (mine === open) byId("dialog-error").textContent = text;
      else tell(text);
    } finally {
      if (mine === open) byId("dialog-yes").disabled = false;
    }
  };
  dialog.showModal();
}

let hide = null;
function tell(text) {
  const place = byId("told");
  place.textContent = text;
  place.hidden = false;
  clearTimeout(hide);
  hide = setTimeout(() => (place.hidden = true), 6000);
}
