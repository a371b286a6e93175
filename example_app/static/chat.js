"use strict";

const $ = (id) => document.getElementById(id);
const URL_OF_CHAT = `${location.protocol.replace("http", "ws")}//${location.host}/chat/socket`;
let socket = null;
let unheard = []; // typed and sent, but not come back yet

function tell(word, kind) {
  $("connection").textContent = word;
  $("connection").className = `badge ${kind}`;
}

function hear(text) {
  const own = unheard.findIndex((typed) => text.endsWith(`: ${typed}`));
  if (own >= 0) unheard.splice(own, 1);
  $("heard").querySelector(".empty")?.remove();
  const item = document.createElement("li");
  item.textContent = text;
  $("heard").prepend(item);
  while ($("heard").children.length > 100) $("heard").lastChild.remove();
}

// A browser does not tell a script which status refused its WebSocket: only that it was refused.
function reasonOf(event, opened) {
  if (!opened) return ["refused: over a limit (429), or Redis is away (503)", "limit"];
  const kind = event.code === 1013 ? "down" : "limit";
  return [`closed ${event.code}${event.reason ? `: ${event.reason}` : ""}`, kind];
}

function connect() {
  if (socket && socket.readyState <= WebSocket.OPEN) return;
  const own = socket = new WebSocket(URL_OF_CHAT);
  let opened = false;
  own.onopen = () => { opened = true; tell("connected", "ok"); };
  own.onmessage = (event) => hear(event.data);
  own.onclose = (event) => {
    if (own !== socket) return;
    tell(...reasonOf(event, opened));
    if (unheard.length) keep(unheard.join(" "), "Not delivered: the connection was closed.");
    unheard = [];
  };
}

function keep(text, why) {
  $("text").value = [text, $("text").value].filter(Boolean).join(" ");
  $("unsent").textContent = `${why} Connect, and send it again.`;
}

function openMore(count) {
  const seen = { connected: 0, refused: 0 };
  for (let i = 0; i < count; i += 1) {
    const extra = new WebSocket(URL_OF_CHAT);
    const note = (what) => {
      seen[what] += 1;
      if (seen.connected + seen.refused === count) hear(`${seen.connected} more connected, ${seen.refused} refused`);
    };
    let opened = false;
    extra.onopen = () => { opened = true; note("connected"); setTimeout(() => extra.close(), 3000); };
    extra.onclose = () => { if (!opened) note("refused"); };
  }
}

function send(text) {
  const open = socket !== null && socket.readyState === WebSocket.OPEN;
  if (open) socket.send(text);
  return open;
}

$("talk").addEventListener("submit", (event) => {
  event.preventDefault();
  const typed = $("text").value;
  $("text").value = "";
  $("unsent").textContent = "";
  if (send(typed)) unheard.push(typed);
  else keep(typed, "Not sent: there is no connection.");
});
fetch("/me", { cache: "no-store" }).then(async (response) => {
  const nobody = response.ok ? "somebody" : "somebody (nobody can tell who: 503)";
  $("who").textContent = response.ok ? (await response.json()).user || nobody : nobody;
});
$("connect").addEventListener("click", connect);
$("burst").addEventListener("click", () => { for (let i = 1; i <= 70; i += 1) send(`message ${i}`); });
$("large").addEventListener("click", () => send("x".repeat(11 * 1024)));
$("six").addEventListener("click", () => openMore(6));
connect();
