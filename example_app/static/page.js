import { draw, readColours, sample } from "./chart.js";
import { Lane, PLAN, ROWS, guess } from "./lane.js";

const $ = (id) => document.getElementById(id);
const seconds = () => Math.floor(Date.now() / 1000);
const port = document.body.dataset.unguarded;
const answers = new Map(); // process → how many
const lanes = { guarded: new Lane("", answered) };
if (port !== "0") lanes.unguarded = new Lane(`${location.protocol}//${location.hostname}:${port}`, () => {});

// -- the stream ---------------------------------------------------------------------------------

let timer = null, lastTick = 0, held = false;

function tick() {
  const now = Date.now(), slot = Math.floor(now / 100);
  if (slot !== lastTick && !held) {
    lastTick = slot;
    const position = slot % PLAN.length, what = PLAN[position];
    const row = ROWS[what][PLAN.slice(0, position).filter((one) => one === what).length];
    for (const lane of Object.values(lanes)) lane.send(Math.floor(slot / 10), row, what);
  }
  timer = setTimeout(tick, 100 - (Date.now() % 100) + 2);
}

function toggle() {
  if (timer === null) tick();
  else { clearTimeout(timer); timer = null; }
  $("stream").setAttribute("aria-pressed", String(timer !== null));
  $("stream-word").textContent = timer === null ? "Start requests" : "Stop requests";
}

function answered(process) {
  answers.set(process, (answers.get(process) || 0) + 1);
}

// -- what Redis was, second by second ------------------------------------------------------------

const turns = []; // {at, state, deed}
let restarted = 0;

function redisAt(second) {
  let state = "running", deed = null;
  for (const turn of turns) {
    if (Math.floor(turn.at) > second) break;
    state = turn.state;
    deed = Math.floor(turn.at) === second ? turn.deed : null;
  }
  return { state, deed };
}

// -- each lane's words and numbers -----------------------------------------------------------------

function verdict(lane) {
  const recent = lane.recent(2), waiting = lane.waiting();
  const has = (...outcomes) => recent.some((one) => outcomes.includes(one.outcome));
  const oldest = waiting.length ? Date.now() / 1000 - Math.min(...waiting.map((one) => one.sent)) : 0;
  if (oldest > 1.2) return ["bad", `Hanging: ${waiting.length} wait, for up to ${Math.round(oldest)} s`];
  if (has("beyond") && has("s500")) return ["bad", "Every guess let in, baskets lost"];
  if (has("beyond")) return ["bad", "Every guess let in"];
  if (has("s500", "none")) return ["bad", "Answers 500"];
  if (has("s503")) {
    const left = Math.max(0, Math.ceil(lane.retryAt - Date.now() / 1000));
    return ["calm", left ? `Refuses with 503, Retry-After ${left} s` : "Refuses with 503"];
  }
  return recent.length ? ["good", "Serves within the limits"] : ["", "No requests yet"];
}

function tile(card, name, text, mood) {
  const box = card.querySelector(`[data-tile=${name}]`);
  box.lastElementChild.textContent = text;
  box.className = mood;
}

function show(name, lane) {
  const card = $(name), now = seconds();
  draw(card.querySelector("canvas"), lane, now, redisAt);
  const [mood, words] = verdict(lane);
  const badge = card.querySelector(".verdict");
  if (badge.textContent !== words) badge.textContent = words;
  // Read out what changes, not how it counts down.
  const news = `${card.querySelector("h2").textContent}: ${words.replace(/\d+ ?s?/g, "")}`;
  if (card.dataset.news !== news && lane.columns.size) $("news").textContent = card.dataset.news = news;
  badge.className = `verdict ${mood}`;
  const wait = Math.max(lane.longest, ...lane.waiting().map((one) => Date.now() / 1000 - one.sent));
  const began = lane.columns.size > 0;
  tile(card, "beyond", lane.beyond, !began ? "" : lane.beyond ? "bad" : "good");
  tile(card, "errors", lane.errors, !began ? "" : lane.errors ? "bad" : "good");
  tile(card, "wait", began ? `${wait.toFixed(1)} s` : "–", !began ? "" : wait > 1 ? "bad" : "good");
  tile(card, "back", ...backAfter(lane));
}

function backAfter(lane) {
  if (!restarted) return ["–", ""];
  // What was sent just before the next fault may have met it.
  const next = turns.find((turn) => turn.at > restarted && turn.state !== "running"), until = next ? next.at - 1 : Infinity;
  const last = lane.bad.filter((at) => at > restarted && at < until).at(-1) || restarted;
  if (!next && Date.now() / 1000 - last < 1.5) return ["…", ""];
  const took = last - restarted;
  return [`${took.toFixed(1)} s`, took > 2 ? "bad" : "good"];
}

function describe(name, lane) {
  const seen = {};
  for (const one of lane.recent(30)) seen[one.outcome.replace("s", "")] = (seen[one.outcome.replace("s", "")] || 0) + 1;
  const told = Object.entries(seen).map(([what, count]) => `${count} × ${what}`).join(", ");
  $(name).querySelector("canvas").setAttribute("aria-label", told ? `The last 30 seconds: ${told}` : "No requests yet");
}

function paint() {
  for (const [name, lane] of Object.entries(lanes)) show(name, lane);
}

// -- the timeline, and the workers -----------------------------------------------------------------

let position = 0, listed = [];

const alike = (one, other) => one.kind === other.kind && one.text.replace(/[\d.]+/, "") === other.text.replace(/[\d.]+/, "");

function fold(entries) {
  for (const entry of entries) {
    if (entry.kind === "redis") {
      turns.push(turns.length ? entry : { ...entry, deed: null }); // the first one is no recovery
      if (entry.deed === "start" && turns.length > 1) restarted = entry.at;
    }
    const before = listed.find((one) => alike(one, entry) && entry.at - one.last < 6);
    if (before && entry.kind !== "redis") {
      before.processes.add(entry.process);
      before.last = entry.at;
    } else {
      listed.unshift({ ...entry, last: entry.at, processes: new Set([entry.process]) });
    }
  }
  listed = listed.slice(0, 80);
}

function list() {
  if (!listed.length) return;
  $("timeline").replaceChildren(...listed.map((entry) => {
    const item = document.createElement("li");
    item.className = entry.mood;
    const time = item.appendChild(document.createElement("time"));
    time.textContent = new Date(entry.at * 1000).toLocaleTimeString([], { hourCycle: "h23" });
    const kind = item.appendChild(document.createElement("b"));
    kind.textContent = entry.kind;
    item.appendChild(document.createElement("span")).textContent = entry.text;
    if (entry.kind !== "redis") {
      const who = item.appendChild(document.createElement("small"));
      who.textContent = entry.processes.size > 1 ? `${entry.processes.size} workers` : `worker ${[...entry.processes][0]}`;
    }
    return item;
  }));
}

function showWorkers(known) {
  // Where workers share nothing, those that have answered are all that is known.
  const workers = known.length ? known : [...answers.keys()].map((pid) => ({ pid, state: "", responds: true }));
  $("workers").replaceChildren(...workers.map((worker) => {
    const item = document.createElement("li");
    item.appendChild(document.createElement("b")).textContent = worker.pid;
    const state = item.appendChild(document.createElement("span"));
    state.className = `pill ${worker.state}`;
    state.textContent = worker.state;
    const notes = [`${answers.get(String(worker.pid)) || 0} answered`];
    if (worker.probes && worker.state !== "closed") notes.unshift("asks Redis");
    if (!worker.responds) notes.unshift("does not respond");
    item.appendChild(document.createElement("small")).textContent = notes.join(", ");
    return item;
  }));
}

function showRedis(state) {
  $("redis").textContent = state;
  $("redis-dot").className = `dot ${state.replace(" ", "-")}`;
  document.body.dataset.redis = state;
  for (const button of document.querySelectorAll("[data-deed]")) {
    const { deed } = button.dataset;
    const useless = { kill: "dead", hang: "hanging", slow: "slow", start: "running" }[deed];
    button.disabled = state === useless || state === "in memory" || (state === "dead" && deed !== "start");
  }
  $("note").hidden = state !== "in memory";
}

async function refresh() {
  try {
    const told = await (await fetch(`/demo/state?after=${position}`, { cache: "no-store" })).json();
    position = told.position;
    showRedis(told.redis);
    if (told.timeline.length) {
      fold(told.timeline);
      list();
    }
    showWorkers(told.workers);
  } catch (error) {
    showRedis("no answer");
  }
}

// -- what the visitor does -------------------------------------------------------------------------

async function who() {
  const response = await fetch("/me", { cache: "no-store" });
  if (response.status === 503) {
    $("me").textContent = "Nobody can tell who you are right now (503): a guess would be worse.";
  } else {
    const { user, basket } = await response.json();
    const things = basket === 1 ? "1 thing" : `${basket} things`;
    $("me").textContent = `${user ? `Logged in as ${user}` : "Not logged in"}, ${things} in the basket.`;
  }
}

async function full(response) {
  const wanted = ["content-type", "retry-after", "ratelimit", "ratelimit-policy"];
  const headers = wanted.filter((name) => response.headers.has(name)).map((name) => `${name}: ${response.headers.get(name)}`);
  $("last").hidden = false;
  $("last").querySelector("pre").textContent = `HTTP ${response.status}\n${headers.join("\n")}\n\n${await response.text()}`;
}

const acts = {
  async login() {
    held = true; // the session gets another id: nothing may write the old one meanwhile
    await new Promise((resolve) => { setTimeout(resolve, 150); });
    const body = new URLSearchParams({ username: "ada", password: "lovelace" });
    const response = await fetch("/login", { method: "POST", body }).finally(() => { held = false; });
    $("summary").textContent = `Logging in: ${response.status}`;
    await full(response);
  },
  async logout() {
    const response = await fetch("/logout", { method: "POST" });
    $("summary").textContent = `Logging out: ${response.status}`;
    await full(response);
  },
  async guess() {
    const seen = {};
    await Promise.all(Array.from({ length: 8 }, async () => {
      const response = await fetch("/login", { method: "POST", body: guess() });
      seen[response.status] = (seen[response.status] || 0) + 1;
      await full(response);
    }));
    const counts = Object.entries(seen).map(([status, count]) => `${count} × ${status}`).join(", ");
    $("summary").textContent = `8 guesses at once: ${counts}`;
  },
};

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const { deed, act } = button.dataset;
  if (button.id === "stream") {
    toggle();
  } else if (deed) {
    button.disabled = true;
    await fetch(`/demo/redis/${deed}`, { method: "POST", headers: { "X-Demo": "1" } });
    await refresh();
  } else if (act) {
    await acts[act]();
    await who();
  } else if ("copy" in button.dataset) {
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }
});

function dress() {
  readColours();
  document.querySelectorAll("[data-sample]").forEach(sample);
  paint();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", dress);
addEventListener("resize", paint);
if (!lanes.unguarded) $("unguarded").hidden = true;
dress();
refresh();
who();
setInterval(() => { if (!document.hidden) paint(); }, 200);
setInterval(() => { if (!document.hidden) { refresh(); } }, 500);
setInterval(() => { if (!document.hidden) { who(); for (const [name, lane] of Object.entries(lanes)) describe(name, lane); } }, 2000);
