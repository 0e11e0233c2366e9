// The page: looks at the ledger every two seconds and draws what it says.
import { byId, clock, h, mb, show } from "./dom.js";
import { acts, live, view } from "./wire.js";
import { buttons, whenDone } from "./acts.js";
import { chart } from "./chart.js";
import { devices } from "./devices.js";
import { List } from "./tables.js";
import { affinity, recommendations } from "./learned.js";
import { dates, tenants } from "./tenants.js";

const EVENTS = 40;
const LEARNED = 20;
const lists = {
  waiting: new List("waiting", "Nothing waits."),
  on_hold: new List("on_hold", "Nothing is on hold."),
  running: new List("running", "Nothing runs."),
};
const STATES = [["running", "running"], ["granted", "granted"], ["waiting", "waiting"], ["delayed", "delayed"], ["on_hold", "on hold"]];
const PAUSED = { stopped: "paused by an operator", paused: "waiting for workers' reports", "": "granting" };

function head(pool) {
  byId("pool").textContent = pool.pool;
  show(byId("counts"), STATES.map(([name]) => pool[name]), () =>
    STATES.map(([name, word]) => h("div", { "data-count": name }, h("dt", {}, word), h("dd", {}, pool[name].toLocaleString()))));
  const granting = byId("granting");
  granting.textContent = PAUSED[pool.paused];
  granting.className = `alc-pill ${pool.paused ? "alc-bad" : "alc-good"}`;
  show(byId("pool-acts"), [acts, pool.paused], () => buttons("pool", pool));
}

/** Fields of events that take a word to be understood. */
const SAID = {
  withheld_mb: (amount) => `${mb(Number(amount))} withheld`,
  used_mb: (amount) => `uses ${mb(Number(amount))}`,
  promised_mb: (amount) => `${mb(Number(amount))} promised`,
  oom_retries: (times) => `claim grown, ${times === "1" ? "once" : `${times} times`}`,
  warm: (loaded) => `affinity ${loaded}`,
};

function events(found) {
  show(byId("events"), found.rows.map((row) => row.entry), () =>
    found.rows.map((row) => {
      const more = ["name", "device", "outcome", "error", "state", "by", "action", "actor", "reason"]
        .filter((key) => row[key]).map((key) => row[key])
        .concat(Object.entries(SAID).filter(([key]) => row[key]).map(([key, say]) => say(row[key]))).join(" · ");
      return h("p", {}, h("time", {}, clock(Number(row.at) / 1000)), h("strong", {}, row.event), ` ${row.task || row.id || ""} `, h("span", { class: "alc-muted" }, more));
    }));
}

async function look() {
  const query = { text: byId("text").value.trim(), tenant: byId("tenant").value.trim() };
  try {
    const pool = await view("pool");
    head(pool);
    devices(pool, query.text, byId("state").value);
    tenants(pool);
    dates(pool.accuracy);
    byId("s-hold").hidden = pool.on_hold === 0;
    const views = [lists.waiting.look(query, pool.at), lists.running.look(query, pool.at)];
    if (pool.on_hold) views.push(lists.on_hold.look({}, pool.at));
    views.push(view("placements").then((found) => {
      chart(found);
      affinity(found.affinity);
    }));
    views.push(view("recommendations", { limit: LEARNED }).then(recommendations), view("events", { limit: EVENTS }).then(events));
    await Promise.all(views);
    byId("fresh").textContent = `as of ${clock(pool.at)}`;
    byId("fresh").classList.remove("alc-error");
  } catch (error) {
    byId("fresh").textContent = error instanceof TypeError || error.name === "TimeoutError"
      ? "Flower cannot be reached; trying again." : `${error.message}; trying again.`;
    byId("fresh").classList.add("alc-error");
  }
}

const again = live(look);
whenDone(again);
byId("search").addEventListener("submit", (event) => event.preventDefault());
let typing = null;
byId("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    Object.values(lists).forEach((list) => list.begin());
    again();
  }, 250);
});
