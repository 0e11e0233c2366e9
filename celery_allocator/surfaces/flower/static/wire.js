// Between the page and Flower: views as JSON, actions, and the rhythm of looking.

const root = document.getElementById("allocator");
export const acts = root.dataset.acts === "yes";
const PERIOD_MS = 2000;
const PATIENCE_MS = 15000;

export const taskUrl = (id) => root.dataset.task.replace(/ID$/, encodeURIComponent(id));
export const workerUrl = (name) => root.dataset.worker.replace(/ID$/, encodeURIComponent(name));

/** Not relative to the page: its address may hold a password, with which nothing may be fetched. */
const absolute = (path) => new URL(path, location.origin);

/** One view. Throws an Error whose message is for people. */
export async function view(name, query = {}) {
  const url = `${root.dataset.view.replace(/view$/, name)}?${new URLSearchParams(query)}`;
  const response = await fetch(absolute(url), { headers: { Accept: "application/json" }, redirect: "manual", signal: AbortSignal.timeout(PATIENCE_MS) });
  if (response.ok) return response.json();
  throw new Error(await reason(response));
}

/** One action. Throws as view does. */
export async function act(action, args, why) {
  const response = await fetch(absolute(root.dataset.act), {
    method: "POST",
    redirect: "manual",
    signal: AbortSignal.timeout(PATIENCE_MS),
    headers: { "Content-Type": "application/json", "X-XSRFToken": root.dataset.xsrf },
    body: JSON.stringify({ action, args, reason: why }),
  });
  if (!response.ok) throw new Error(await reason(response));
  return response.json();
}

async function reason(response) {
  // A login that has ended: Flower sends one to its login page, which is no answer to this.
  if (response.type === "opaqueredirect" || response.status === 401) return "Flower wants you to log in again: reload the page";
  const type = response.headers.get("Content-Type") || "";
  if (type.startsWith("application/json")) return (await response.json()).error.message;
  return type.startsWith("text/plain") ? response.text() : `Flower answers ${response.status}`;
}

/** Call look() every two seconds while somebody can see the page; it is called at once when that begins. */
export function live(look) {
  let timer = null;
  let busy = false;
  async function turn() {
    clearTimeout(timer);
    if (busy) return;
    busy = true;
    try {
      await look();
    } finally {
      busy = false;
      if (!document.hidden) timer = setTimeout(turn, PERIOD_MS);
    }
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : turn()));
  turn();
  return turn;
}
