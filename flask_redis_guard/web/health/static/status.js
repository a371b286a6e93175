"use strict";

// Asks this process (behind a load balancer: some process) how Redis is, and draws the answer.

const POLL_MS = 1000;
const PATIENCE_MS = 5000;
const FORGET_MS = 15000; // a process that has not answered for so long is no longer shown
const SPANS = [[6, "minute"], [30, "5 minutes"], [90, "15 minutes"], [360, "hour"]]; // slots, and their name
const SVG = "http://www.w3.org/2000/svg";
const SEVERITY = { pass: 0, warn: 1, fail: 2 };

// Without the user and password that this page's own address may have: a browser refuses to fetch those.
const DATA = new URL("status.json", location.origin + location.pathname);
const COMMANDS = new URL("breaker", location.origin + location.pathname);

const views = new Map(); // host and process -> {answer, at}
let chosen = null; // the process whose view the reader asked for
let shown = null;
let slots = 360; // that the charts have room for

const byId = (id) => document.getElementById(id);

/** One line for a cluster: which primaries are not served, and how many are. */
function primaries(states) {
  const all = Object.entries(states);
  const away = all.filter(([, state]) => state !== "closed");
  const told = away.map(([node, state]) => `${node} ${state}`);
  return all.length ? [["Primaries", [...told, `${all.length - away.length} closed`].join(", ")]] : [];
}

function element(name, text, className) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function shape(name, attributes, title) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (title) {
    const label = document.createElementNS(SVG, "title");
    label.textContent = title;
    node.append(label);
  }
  return node;
}

function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

function clock(seconds) {
  const then = new Date(seconds * 1000);
  const time = then.toLocaleTimeString([], { hourCycle: "h23" });
  return then.toDateString() === new Date().toDateString() ? time : `${then.toLocaleDateString()} ${time}`;
}

function words(answer) {
  const { redis, details } = answer;
  if (redis.is_mock) {
    return ["In-memory store", "Redis cannot be reached. This development app goes on with a store of its own."];
  }
  if (redis.circuit_state === "forced-open") {
    return ["Redis is shut off", "An operator keeps everybody out. What needs Redis is answered with 503."];
  }
  if (answer.status === "fail") {
    const since = details.downtime ? ` for ${duration(details.downtime)}` : "";
    const next = redis.circuit_state === "half-open"
      ? "A probe is on its way."
      : "It is checked in the background; service resumes by itself.";
    return ["Redis is down", `Failing${since}. What needs Redis is answered with 503. ${next}`];
  }
  if (redis.circuit_state === "half-open") {
    return ["Redis is recovering", "A probe went through; more of them will close the circuit."];
  }
  if (redis.circuit_state === "disabled") {
    return ["The circuit is disabled", "An operator lets every call pass, whatever becomes of it."];
  }
  const all = Object.values(details.primaries);
  const away = all.filter((state) => state !== "closed").length;
  if (answer.status === "warn" && away > 0) {
    return ["A part of Redis is down", `What needs ${away} of ${all.length} primaries is answered with 503, the rest is served.`];
  }
  if (answer.status === "warn") {
    return ["Redis is failing", "The last check failed. If this goes on, the circuit opens."];
  }
  return ["Redis is healthy", "Calls pass, and the last check was answered."];
}

function facts(answer) {
  const { redis, details } = answer;
  const last = details.last_failure;
  const latency = redis.latency_ms === null ? "no answer" : `${redis.latency_ms.toFixed(1)} ms`;
  const pool = details.connections_in_use === null
    ? "unknown" : `${details.connections_in_use} of ${details.connections_at_most}`;
  return [
    ["Circuit", redis.circuit_state],
    ["In this state for", duration(details.seconds_in_state)],
    ["Last check", latency],
    ["Failures in a row", redis.failure_count],
    ["Down for", details.downtime ? duration(details.downtime) : "not down"],
    ["Last failure", last ? `${last.reason}: ${last.error} at ${last.operation}, ${clock(last.at)}` : "none so far"],
    ["Connections in use", pool],
    ["Server", details.server_version || "unknown"],
    ...primaries(details.primaries),
  ];
}

function drawFacts(answer) {
  byId("facts").replaceChildren(...facts(answer).map(([name, value]) => {
    const box = element("div");
    box.append(element("dt", name), element("dd", value));
    return box;
  }));
}

function chart(title, note, className, height) {
  const figure = element("figure");
  const caption = element("figcaption");
  caption.append(element("span", title), element("span", note));
  const svg = shape("svg", {
    viewBox: `0 0 ${slots} ${height}`, preserveAspectRatio: "none", class: className, role: "img",
    "aria-label": `${title}: ${note}`,
  });
  figure.append(caption, svg);
  return [figure, svg];
}

function when(history, index) {
  const ago = (history.state.length - 1 - index) * history.slot_seconds;
  return ago < history.slot_seconds ? "now" : `${duration(ago)} ago`;
}

function drawStates(history, current) {
  const count = history.state.length;
  const bad = history.state.filter((state) => state !== "closed").length;
  const note = bad ? `not closed for about ${duration(bad * history.slot_seconds)}` : "closed throughout";
  const [figure, svg] = chart("Circuit", note, "strip", 1);
  for (let start = 0, end = 1; start < count; start = end, end += 1) {
    while (end < count && history.state[end] === history.state[start]) end += 1;
    svg.append(shape("rect", {
      x: slots - count + start, y: 0, width: end - start, height: 1,
      class: `state ${history.state[start]}`,
    }, `${history.state[start]}, from ${when(history, start)}`));
  }
  // A slot shows the worst that happened in it; its end shows what is now.
  const width = slots / 60;
  svg.append(shape("rect", {
    x: slots - width, y: 0, width, height: 1, class: `state now ${current}`,
  }, `${current}, now`));
  return figure;
}

function drawBars(history, title, values, className, unit, note) {
  const highest = Math.max(...values.map((value) => value || 0));
  const [figure, svg] = chart(title, note(highest), "bars", 100);
  values.forEach((value, index) => {
    if (!value) return;
    const height = Math.max(4, (100 * value) / highest); // a single one is to be seen as well
    svg.append(shape("rect", {
      x: slots - values.length + index, y: 100 - height, width: 1, height, class: className,
    }, `${value} ${unit}, ${when(history, index)}`));
  });
  return figure;
}

function drawAxis(history) {
  // As long as the process is young, a shorter time: what there is fills the charts.
  const [room, name] = SPANS.find(([count]) => history.state.length <= count) || SPANS.at(-1);
  slots = room;
  setText("hour", `The last ${name}`);
  const [oldest, middle] = byId("axis").children;
  oldest.textContent = `${duration(room * history.slot_seconds).replace(" 0 s", "").replace("1 h 0 min", "60 min")} ago`;
  middle.textContent = duration(room * history.slot_seconds / 2).replace(" 0 s", "");
}

function drawHistory(history, current) {
  const total = (values) => values.reduce((sum, value) => sum + value, 0);
  drawAxis(history);
  byId("charts").replaceChildren(
    drawStates(history, current),
    drawBars(history, "Latency of checks", history.latency_ms, "bar", "ms",
      (highest) => (highest ? `at most ${highest.toFixed(1)} ms` : "none answered")),
    drawBars(history, "Failed checks", history.failed_checks, "bad", "failed",
      () => `${total(history.failed_checks)}`),
    drawBars(history, "Refused without Redis (503)", history.refused, "bad", "refused",
      () => `${total(history.refused)}`),
    drawBars(history, "Over a limit (429)", history.limited, "bar", "over a limit",
      () => `${total(history.limited)}`),
  );
}

function drawLimits(limited) {
  const rows = Object.entries(limited);
  byId("limits").hidden = rows.length === 0;
  byId("limits").querySelector("tbody").replaceChildren(...rows.map(([name, count]) => {
    const row = element("tr");
    row.append(element("td", name), element("td", count, "number"));
    return row;
  }));
}

function drawWorkers(workers) {
  byId("workers").hidden = workers.length === 0;
  byId("workers").querySelector("tbody").replaceChildren(...workers.map((worker) => {
    const row = element("tr");
    const heard = worker.responds
      ? (worker.heard === null ? "at work" : `${worker.heard.toFixed(1)} s ago`)
      : "does not respond";
    const probes = worker.probes ? ", asks whether Redis is back" : "";
    row.append(
      element("td", worker.pid), element("td", worker.state + probes),
      element("td", worker.failures, "number"), element("td", heard),
    );
    return row;
  }));
}

const MEANINGS = {
  "reset": "close the circuits of all workers of this host?",
  "force-open": "keep all workers of this host away from Redis until a reset?",
  "disable": "let every call of all workers of this host pass, uncounted, until a reset?",
};

async function command(action) {
  if (!confirm(`Really ${MEANINGS[action]}`)) return;
  let said = `${action} was sent to all workers of this host.`;
  try {
    const response = await fetch(COMMANDS, {
      method: "POST", cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(PATIENCE_MS),
      headers: { "Content-Type": "application/json", "X-Redis-Guard": "status page" }, body: JSON.stringify({ action }),
    });
    if (!response.ok) said = `${action} was refused: ${(await response.text()).trim()}`;
  } catch {
    said = `${action} could not be sent.`;
  }
  setText("commanded", said);
}

for (const button of document.querySelectorAll("#workers button")) {
  button.addEventListener("click", () => command(button.dataset.action));
}

function drawProcesses() {
  const group = byId("processes");
  group.hidden = views.size < 2;
  const held = group.contains(document.activeElement) ? document.activeElement.dataset.view : null;
  const hosts = new Set([...views.values()].map(({ answer }) => answer.details.host));
  group.replaceChildren(...[...views].sort(([a], [b]) => (a < b ? -1 : 1)).map(([view, { answer }]) => {
    const where = hosts.size > 1 ? ` on ${answer.details.host}` : "";
    const button = element("button", `process ${answer.process}${where}: ${answer.redis.circuit_state}`);
    button.type = "button";
    button.dataset.view = view;
    button.dataset.process = answer.process;
    button.setAttribute("aria-pressed", String(view === shown));
    button.addEventListener("click", () => {
      chosen = view;
      draw();
    });
    return button;
  }));
  if (held) [...group.children].find((button) => button.dataset.view === held)?.focus();
}

function choose() {
  if (views.has(chosen)) return chosen;
  // Without a choice: the process that fares worst, and as long as none is worse the same one.
  const worse = (a, b) => SEVERITY[b[1].answer.status] - SEVERITY[a[1].answer.status]
    || (b[0] === shown) - (a[0] === shown);
  return [...views].sort(worse)[0][0];
}

function draw() {
  shown = choose();
  const { answer } = views.get(shown);
  const [headline, meaning] = words(answer);
  setText("headline", headline);
  byId("headline").dataset.status = answer.status;
  setText("meaning", meaning);
  const others = views.size > 1 ? "" : "; others may see it otherwise";
  setText("speaker", `As process ${answer.process} on ${answer.details.host} sees it${others}.`);
  drawProcesses();
  drawFacts(answer);
  drawHistory(answer.history, answer.redis.circuit_state);
  drawWorkers(answer.workers);
  drawLimits(answer.details.limited);
}

function setText(id, text) {
  // Only what changed: a screen reader announces the headline.
  if (byId(id).textContent !== text) byId(id).textContent = text;
}

function lost(why) {
  setText("headline", "The application does not answer");
  byId("headline").dataset.status = "unknown";
  setText("meaning", `${why} What stands below is old.`);
}

async function ask() {
  try {
    const response = await fetch(DATA, {
      cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(PATIENCE_MS),
    });
    if (response.status === 401 || response.status === 403) {
      lost("It no longer takes this page's authorisation: load the page again.");
    } else if (!response.ok) {
      lost(`It answered with ${response.status}.`);
    } else {
      return await response.json();
    }
  } catch {
    lost("It cannot be reached.");
  }
  return null;
}

async function poll() {
  const answer = await ask();
  setTimeout(poll, POLL_MS);
  if (answer === null) return;
  const now = Date.now();
  views.set(`${answer.details.host} ${answer.process}`, { answer, at: now });
  for (const [view, { at }] of views) if (now - at > FORGET_MS) views.delete(view);
  draw();
}

poll();
