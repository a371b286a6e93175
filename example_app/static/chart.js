// The picture of a lane: a square for each request, a column for each second, newest at the right.

import { ROWS } from "./lane.js";

const COLUMNS_AT_MOST = 90;
const TOP = 26; // what happened to Redis
const BOTTOM = 16; // the time axis
const WORDS = { kill: "killed", hang: "hangs", slow: "slow", empty: "emptied", start: "back" };
const ROW_GAP = 5; // between the kinds of requests

let colours = {};

/** Read the colours from the style sheet: at the start, and when light and dark change places. */
export function readColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["s200", "s401", "s429", "s503", "s500", "beyond", "edge", "wait", "soft", "line", "dead", "hanging", "slow", "running", "mark", "tint"];
  colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** Prepare a canvas for sharp drawing, in CSS pixels; return its context. */
function prepare(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** One request. Each outcome that must not be mistaken has a shape of its own beside its colour. */
function square(context, outcome, x, y, size, late = false) {
  if (late || outcome === "late") {
    square(context, "wait", x, y, size);
    context.fillStyle = colours[outcome] || colours.soft;
    context.fillRect(x + size * 0.32, y + size * 0.32, size * 0.36, size * 0.36);
    return;
  }
  const middle = size / 2, arm = size * 0.24;
  context.fillStyle = context.strokeStyle = colours[outcome] || colours.wait;
  context.lineWidth = 1.5;
  if (outcome === "wait" || outcome === "none") {
    context.beginPath();
    context.roundRect(x + 0.75, y + 0.75, size - 1.5, size - 1.5, 2);
    context.strokeStyle = colours.wait;
    context.stroke();
    if (outcome === "wait") return;
    context.beginPath();
    context.moveTo(x + middle - arm, y + middle + arm);
    context.lineTo(x + middle + arm, y + middle - arm);
    context.stroke();
    return;
  }
  context.beginPath();
  context.roundRect(x, y, size, size, 2);
  context.fill();
  if (outcome === "s429") { // too bright to stand out from a white card by itself
    context.lineWidth = 1;
    context.strokeStyle = colours.edge;
    context.beginPath();
    context.roundRect(x + 0.5, y + 0.5, size - 1, size - 1, 1.5);
    context.stroke();
    return;
  }
  context.strokeStyle = colours.mark;
  context.beginPath();
  if (outcome === "s500") {
    context.moveTo(x + middle - arm, y + middle - arm);
    context.lineTo(x + middle + arm, y + middle + arm);
    context.moveTo(x + middle + arm, y + middle - arm);
    context.lineTo(x + middle - arm, y + middle + arm);
  } else if (outcome === "s503") {
    context.moveTo(x + middle - arm, y + middle);
    context.lineTo(x + middle + arm, y + middle);
  } else if (outcome === "beyond") {
    context.moveTo(x + middle, y + size * 0.2);
    context.lineTo(x + middle, y + size * 0.56);
    context.moveTo(x + middle, y + size * 0.68);
    context.lineTo(x + middle, y + size * 0.82);
  }
  context.stroke();
}

export function sample(canvas) {
  const context = prepare(canvas, 14, 14);
  square(context, canvas.dataset.sample, 1, 1, 12);
}

/**
 * Draw a lane.
 * @param {HTMLCanvasElement} canvas
 * @param {import("./lane.js").Lane} lane
 * @param {number} now the newest second
 * @param {(second: number) => {state: string, deed: string | null}} redis what Redis was then
 */
export function draw(canvas, lane, now, redis) {
  const width = canvas.clientWidth;
  const labels = width < 420 ? 50 : 56;
  const pitch = width < 420 ? 10 : 12;
  const size = pitch - 2;
  const count = Math.min(COLUMNS_AT_MOST, Math.floor((width - labels) / pitch));
  const left = width - count * pitch;
  const rowAt = (row) => TOP + row * pitch + (row > 3 ? ROW_GAP : 0) + (row > 5 ? ROW_GAP : 0);
  const height = rowAt(9) + pitch + BOTTOM;
  if (canvas.clientHeight !== height) canvas.style.height = `${height}px`;
  const context = prepare(canvas, width, height);
  context.font = `500 11px system-ui, sans-serif`;
  context.textBaseline = "middle";

  context.fillStyle = colours.soft;
  for (const [what, rows] of Object.entries(ROWS)) {
    const middle = (rowAt(rows[0]) + rowAt(rows.at(-1)) + size) / 2;
    context.fillText(what === "guess" ? "guesses" : what, 0, middle);
  }

  const bottom = rowAt(9) + size;
  let marked = -Infinity;
  for (let index = 0; index < count; index += 1) {
    const second = now - count + 1 + index, x = left + index * pitch;
    const { state, deed } = redis(second);
    if (state !== "running") {
      context.fillStyle = colours.tint;
      context.fillRect(x - 1, TOP - 6, pitch, bottom - TOP + 10);
    }
    context.fillStyle = colours[state] || colours.line;
    context.fillRect(x - 1, TOP - 9, pitch, 4);
    if (deed) {
      const text = WORDS[deed], end = context.measureText(text).width;
      const at = Math.min(x, width - end);
      if (at > marked) {
        context.fillStyle = colours[state === "running" ? "soft" : "dead"];
        context.fillText(text, at, 7);
        marked = at + end + 8;
      }
    }
    for (const request of lane.columns.get(second) || []) {
      if (request) square(context, request.outcome, x, rowAt(request.row), size, request.late && request.outcome !== "none");
    }
    if (!lane.columns.has(second)) {
      context.fillStyle = colours.line;
      for (let row = 0; row < 10; row += 1) context.fillRect(x + size / 2 - 1, rowAt(row) + size / 2 - 1, 2, 2);
    }
  }

  context.fillStyle = colours.soft;
  context.fillText(`${count} s ago`, left, height - 6);
  context.fillText("now", width - context.measureText("now").width, height - 6);
}
